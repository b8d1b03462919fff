"""A plan, or the model it is for, as a company is given it: a plan.json, a run folder, a preset or a TOML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..blocks.families import ModelSettings
from ..errors import InputError
from ..experiments.presets import load_settings
from ..settings import DataSource, Plan, read_text, validated_json

_RUN = "check"


def plan_of(given: str, overrides: Sequence[str] = ()) -> Plan:
    """The plan of a plan.json, of the run folder it lies in, or of the settings of a preset or TOML file.

    Raises: InputError where it is none of these, or not valid.
    """
    path = _plan_file(given)
    if path is None:
        return _of_settings(given, overrides)
    _no_overrides(overrides)
    return validated_json(Plan, read_text("plan", path))


def model_of(
    given: str, overrides: Sequence[str] = ()
) -> tuple[ModelSettings, DataSource | None, bool | None]:
    """The model that a plan or settings are for; with settings also their public data, whose contract is everybody's,
    and whether the contrast of images is to be equal."""
    path = _plan_file(given)
    if path is not None:
        _no_overrides(overrides)
        return validated_json(Plan, read_text("model", path)).model, None, None
    settings = load_settings(given, overrides)
    return settings.model, settings.data.public, settings.data.match_contrast


def _plan_file(given: str) -> Path | None:
    path = Path(given)
    if path.is_dir():
        return path / "plan.json"
    return path if path.suffix == ".json" else None


def _no_overrides(overrides: Sequence[str]) -> None:
    if overrides:
        raise InputError("--set", overrides[0], "a plan is what it is; give a preset or a TOML file")


def _of_settings(given: str, overrides: Sequence[str]) -> Plan:
    import torch

    from ..blocks import build_model
    from ..experiments.simulation.preparation import make_plan

    settings = load_settings(given, overrides)
    with torch.device("meta"):  # its shapes alone: no memory, however large the model is
        model = build_model(settings.model, settings.noise)
    return make_plan(settings, model, _RUN)
