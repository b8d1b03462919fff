"""Ordinary networks under the same conditions: what the cut into blocks costs, and what its depth is worth.

Same data, cohort, rounds, mechanism and epsilon; but one network trained end to end, with all L layers or with
the L/B layers of a single block. The paper omits the second; where it does as well, the other blocks add nothing.
"""

from __future__ import annotations

from ...server.run_folder import RunFolder
from ...settings import SimulationSettings, read_simulation, validated
from .preparation import OnStep, prepare, read_inputs

CONTROLS = ("end_to_end", "shallow")


def control_settings(settings: SimulationSettings, control: str) -> SimulationSettings:
    """The settings of a run's control: one block, of L or of L/B layers."""
    raw = settings.model_dump(mode="json", exclude_none=True)
    if control == "shallow":
        raw["model"]["layers"] //= raw["model"]["blocks"]
    raw["model"] |= {"blocks": 1, "features": "raw"}
    raw["training"]["assignment"] = "sequential"
    raw["training"].pop("reserve", None)  # it is no training
    without = settings.training.model_copy(update={"reserve": 0})
    raw["training"]["rounds"] = without.releases(settings.model.blocks)
    raw["noise"].pop("edges", None)
    raw["audit"].pop("block", None)
    if settings.privacy.epsilon is None:
        raw["privacy"]["epsilon"] = None
    return validated(SimulationSettings, raw)


def prepare_control(run: RunFolder, control: str, on_step: OnStep = lambda step: None) -> RunFolder:
    """runs/<id>/control-<name>, or the one that is there already."""
    final = run.path / f"control-{control}"
    if final.is_dir():
        return RunFolder(final)
    settings = read_simulation(run.path)
    inputs = read_inputs(settings)
    return prepare(control_settings(settings, control), final, inputs=inputs, on_step=on_step)
