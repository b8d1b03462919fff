"""Presets in TOML: `fedblocks simulate NAME`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from ...errors import InputError
from ...settings import SimulationSettings, lay_over, parsed_toml, read_tables, validated
from ...settings.contract import settle
from ..pretrained_models import settle_built_in


def preset_names() -> list[str]:
    """The presets that come with the package."""
    files = resources.files(__name__).iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load_settings(preset: str, overrides: Sequence[str] | Mapping[str, object] = ()) -> SimulationSettings:
    """Read a preset by name or a TOML file by path, and lay `key=value` overrides over it (see `lay_over`).

    A model that is named `pretrained = "built-in:NAME"` is made first where it is not there yet, which takes minutes.

    Raises: InputError naming field, value and rule.
    """
    if preset in preset_names():
        text = resources.files(__name__).joinpath(f"{preset}.toml").read_text("utf-8")
        raw = parsed_toml("preset", preset, text)
    elif Path(preset).is_file():
        raw = read_tables("preset", Path(preset))
    else:
        raise InputError("preset", preset, f"no such preset or file; presets: {', '.join(preset_names())}")
    lay_over(raw, overrides)
    settle_built_in(raw)
    settle(raw)
    return validated(SimulationSettings, raw)
