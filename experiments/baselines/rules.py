"""Baselines that are runs of the federation with other settings, and those in which there is no federation, by name.

fedavg   McMahan et al. 2017: the mean update is applied as it is
fedprox  Li et al. 2020: the same, and local steps are pulled back to where the round began
fedadam  Reddi et al. 2021: the mean update is the gradient of Adam
central  all companies' examples in one place
alone    each company with its own examples only
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from ...errors import InputError
from ...settings import SimulationSettings, TrainingSettings, validated
from ..presets import load_settings

Baseline = Literal["fedavg", "fedprox", "fedadam", "central", "alone"]
NO_FEDERATION = ("central", "alone")
_LONGEST = 41  # of a run's name

_AS_IT_IS = ("training.server_optimizer=fedavg", "training.server_learning_rate=1.0")
_MU = "training.proximal"
_OVER: dict[Baseline, tuple[str, ...]] = {
    "fedavg": (*_AS_IT_IS, f"{_MU}=0.0"),
    "fedprox": (*_AS_IT_IS, f"{_MU}=0.1"),
    "fedadam": ("training.server_optimizer=fedadam", f"{_MU}=0.0"),
}


def baseline_settings(preset: str, name: Baseline, overrides: Sequence[str] = ()) -> SimulationSettings:
    """The preset as this baseline has it; what `overrides` say goes before that.

    Raises: InputError for a baseline that has no meaning with these settings.
    """
    if name not in get_args(Baseline):
        raise InputError("--baseline", name, f"expected one of {', '.join(get_args(Baseline))}")
    if name in NO_FEDERATION:
        found = without_privacy(load_settings(preset, overrides)).model_copy(update={"protocol": "off"})
        return _named(found, name)
    plain = load_settings(preset, overrides)
    over = _OVER[name]
    if name == "fedadam" and plain.training.server_optimizer != "fedadam":
        rate = TrainingSettings.model_fields["server_learning_rate"].default
        over = (*over, f"training.server_learning_rate={rate}")
    if name == "fedprox" and plain.training.local_steps < 2:
        rule = "needs local steps to pull back, as in --set training.local_steps=5"
        raise InputError("--baseline", name, f"{rule}; there is {plain.training.local_steps}")
    return _named(load_settings(preset, [*over, *overrides]), name)


def without_privacy(settings: SimulationSettings) -> SimulationSettings:
    """The same without noise, shares of it, or evaluations that need it."""
    privacy = {"epsilon": None, "noise_multiplier": None, "i_accept_no_dp": True, "mode": "local"}
    own = settings.privacy.model_copy(update=privacy | {"dropouts": 0, "colluders": 0})
    return settings.model_copy(update={"privacy": own, "evaluation": None})


def _named(settings: SimulationSettings, name: Baseline) -> SimulationSettings:
    """So that its folder tells it from a run of the preset."""
    room = _LONGEST - len(name) - 1
    return validated(SimulationSettings, settings.model_dump() | {"name": f"{settings.name[:room]}-{name}"})
