"""Attacks measured on trained blocks of the presets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from ....errors import InputError


def parts() -> tuple[str, ...]:
    """Names of what is measured, a module each, with `measure(seeds)`."""
    return tuple(
        sorted(m.name.replace("_", "-") for m in iter_modules(__path__) if not m.name.startswith("_"))
    )


def measure(
    seeds: int = 3,
    only: Sequence[str] = (),
    on_progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """All parts' figures, or those of the parts in `only`. Raises: InputError for a part that is none."""
    unknown = [name for name in only if name not in parts()]
    if unknown:
        raise InputError("--only", unknown[0], f"expected one of {', '.join(parts())}")
    found: dict[str, Any] = {}
    for name in only or parts():
        on_progress(f"{name} ...")
        result = import_module(f".{name.replace('-', '_')}", __name__).measure(seeds)
        found |= result
        for key, value in result.items():
            on_progress(f"  {key}: {value}")
    return found
