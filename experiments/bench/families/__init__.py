"""One bench row a model family: ours, end to end, and end to end with one block's layers."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ....errors import InputError

FAMILIES = ("dit", "masked-lm", "ar-lm", "recurrent-lm", "forecaster", "tabular")


def measure(
    seeds: int, only: list[str], on_progress: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """{family: row}; the classifier has a bench of its own."""
    for family in only:
        if family not in FAMILIES:
            raise InputError("--only", family, f"expected one of {', '.join(FAMILIES)}")
    chosen = only or list(FAMILIES)
    rows = {}
    for family in chosen:
        module = import_module(f".{family.replace('-', '_')}", __name__)
        rows[family] = module.row(seeds, lambda line, family=family: on_progress(f"{family}: {line}"))
        on_progress(f"{family}: ratio {rows[family]['ratio']:.3f}")
    return rows
