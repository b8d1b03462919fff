"""A run's settings in its folder: settings.toml is what its coordinator has, simulation.toml beside it the rest.

No key stands in both, so that neither file can contradict the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w
from pydantic import TypeAdapter

from .. import atomic_file
from ..blocks.pretrained.listed import register_listed, write_listed
from ..blocks.pretrained.settings import PretrainedSettings
from ..errors import InputError, RunError
from .load import parsed_toml, read_text, validated
from .run import RunSettings
from .simulation import SimulationSettings

SETTINGS, SIMULATION = "settings.toml", "simulation.toml"
_ROSTER = "roster.toml"
_Tables = dict[str, Any]


def write_settings(folder: Path, settings: RunSettings) -> None:
    """Write settings.toml; of a simulation's settings what its coordinator has. Beside it, where a pretrained model
    lies that these settings name by its digest."""
    if isinstance(settings.model, PretrainedSettings):
        write_listed(folder, settings.model.pretrained)
    atomic_file.write(folder / SETTINGS, tomli_w.dumps(_tables(RunSettings, settings)).encode())


def write_simulation(folder: Path, settings: SimulationSettings) -> None:
    """Write simulation.toml: what settings.toml lacks of a simulation's settings."""
    rest = _without(_tables(SimulationSettings, settings), _tables(RunSettings, settings))
    atomic_file.write(folder / SIMULATION, tomli_w.dumps(rest).encode())


def read_settings(folder: Path) -> RunSettings:
    """What the coordinator of the run in `folder` has.

    Raises: RunError for a folder of an earlier version.
    """
    file = folder / SETTINGS
    raw = _read("settings", file)
    if raw.keys() & (SimulationSettings.model_fields.keys() - RunSettings.model_fields.keys()):
        rule = "made by an earlier version of fedblocks, which kept a simulation's settings in this file too"
        raise RunError(f"{file}: {rule}; start anew with: fedblocks simulate {file}")
    return validated(RunSettings, raw)


def read_simulation(folder: Path) -> SimulationSettings:
    """Everything that decides the simulation in `folder`.

    Raises: RunError for a folder of an earlier version, or of a run whose companies are no invented ones.
    """
    read_settings(folder)
    if not is_simulation(folder):
        raise RunError(f"{folder}: not a simulation ({SIMULATION} is missing)")
    return validated(SimulationSettings, read_tables("settings", folder / SETTINGS))


def is_simulation(folder: Path) -> bool:
    """Whether the companies of the run in `folder` are invented."""
    return (folder / SIMULATION).is_file()


def without_protocol(folder: Path) -> bool:
    """Whether the run in `folder` is a study of utility, in which no company has accounted anything.

    Only companies that were made without the protocol have no roster, so settings that were changed afterwards do not
    promise what nobody has accounted.
    """
    if not is_simulation(folder):
        return False
    return read_simulation(folder).protocol == "off" or not (folder / _ROSTER).is_file()


def read_tables(field: str, path: Path) -> dict[str, Any]:
    """A TOML file of settings; a run's settings.toml together with the simulation.toml beside it."""
    raw = _read(field, path)
    if path.name == SETTINGS and is_simulation(path.parent):
        rest = path.parent / SIMULATION
        _merge(raw, _read(field, rest), rest)
    return raw


def refuse_injected_failures(folder: Path) -> None:
    """For who runs `folder` with companies of their own, whose replies nobody is to lose on purpose.

    Raises: InputError where a simulation's settings ask for that, or for a run without the protocol.
    """
    if is_simulation(folder):
        settings = read_simulation(folder)
        if settings.protocol == "off":
            raise InputError("protocol", "off", "only `fedblocks simulate` runs without the protocol")
        rate = settings.companies.dropout.rate
        if rate > 0:
            raise InputError("companies.dropout.rate", rate, "only `fedblocks simulate` injects failures")


def _tables(kind: type[RunSettings], settings: RunSettings) -> _Tables:
    """The fields that `kind` has, as TOML can hold them."""
    # By its adapter, which leaves out whatever a subclass adds, at any depth.
    values: _Tables = TypeAdapter(kind).dump_python(settings, mode="json", exclude_none=True)
    if settings.privacy.epsilon is None:
        values["privacy"]["epsilon"] = "none"
    return values


def _read(field: str, path: Path) -> _Tables:
    register_listed(path.parent)
    return parsed_toml(field, path, read_text(field, path))


def _without(whole: _Tables, part: _Tables) -> _Tables:
    rest = {}
    for key, value in whole.items():
        if key not in part:
            rest[key] = value
        elif isinstance(value, dict) and (inner := _without(value, part[key])):
            rest[key] = inner
    return rest


def _merge(tables: _Tables, more: _Tables, file: Path) -> None:
    for key, value in more.items():
        present = tables.setdefault(key, value)
        if present is value:
            continue
        if not isinstance(present, dict) or not isinstance(value, dict):
            raise RunError(f"{file}: {key} stands in {SETTINGS} already")
        _merge(present, value, file)
