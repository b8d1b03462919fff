"""LM-MAP through the run's own mechanism."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.settings import SimulationSettings
from fedblocks.settings.load import validated
from fedblocks.threat_model.attacks.lm_map import ATTACK
from fedblocks.threat_model.clock import Clock
from fedblocks.threat_model.results import Result
from fedblocks.threat_model.subject import Subject


def subject_of(small: SimulationSettings, folder: Path, **changed: dict[str, object]) -> Subject:
    raw = small.model_dump()
    for part, fields in changed.items():
        raw[part] |= fields
    return Subject.of(prepare(validated(SimulationSettings, raw), folder / "run"), block=0)


def test_one_and_two_unknown_examples_come_back_without_noise_and_not_with_it(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a likelihood of another clip or another noise, and an attack that reads the truth."""
    subject = subject_of(small, tmp_path, model={"hidden_size": 48, "heads": 4}, pretraining={"steps": 20})
    assert ATTACK.applies(subject) is None
    found = [each for each in ATTACK.run(subject.within(Clock(300))) if isinstance(each, Result)]
    exact = {each.view: each for each in found if "exactly" in each.statistic}
    assert len(exact) == 2
    for each in exact.values():
        assert each.control is not None
        assert each.control.value >= 0.75
        assert each.value is not None
        assert each.value.value == 0.0
        assert each.outcome == "not found"


def test_a_clock_that_runs_out_says_nothing(small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch "not found" by an attack that had no time."""
    subject = subject_of(small, tmp_path, model={"hidden_size": 48, "heads": 4})
    found = [each for each in ATTACK.run(subject.within(Clock(1e-3))) if isinstance(each, Result)]
    assert {each.outcome for each in found} <= {"inconclusive", "found"}
    assert any("the time ran out after 1 of" in each.reason for each in found)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"training": {"noise_draws": 2}}, "2 noise draws"),
        ({"training": {"interface": True}}, "interface"),
        ({"training": {"local_steps": 2}}, "noise draws"),
    ],
)
def test_what_the_likelihood_does_not_hold_of_is_refused(
    small: SimulationSettings, tmp_path: Path, changed: dict[str, dict[str, object]], why: str
) -> None:
    assert why in str(ATTACK.applies(subject_of(small, tmp_path, **changed)))
