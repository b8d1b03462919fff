"""Membership in a release, through the run's own mechanism."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.settings import SimulationSettings
from fedblocks.settings.load import validated
from fedblocks.threat_model.attacks.sum_membership import ATTACK
from fedblocks.threat_model.clock import Clock
from fedblocks.threat_model.results import Result
from fedblocks.threat_model.subject import Subject


def results(
    small: SimulationSettings, folder: Path, seconds: float = 60.0, **privacy: object
) -> list[Result]:
    raw = small.model_dump()
    raw["privacy"] |= {"epsilon": 1e6} | privacy
    subject = Subject.of(prepare(validated(SimulationSettings, raw), folder / "run"), block=0)
    assert ATTACK.applies(subject) is None
    return [each for each in ATTACK.run(subject.within(Clock(seconds))) if isinstance(each, Result)]


def area(found: list[Result], view: str) -> Result:
    return next(each for each in found if each.view.startswith(view) and each.unit == "auc")


def test_a_loose_run_is_found(small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch "nothing found" at an epsilon of several hundreds."""
    release = area(results(small, tmp_path, noise_multiplier=0.2), "one company")
    assert release.outcome == "found"
    assert release.value is not None
    assert release.value.low > 0.75
    assert release.ceiling is not None
    assert release.value.value <= release.ceiling + 0.02


def test_a_sum_of_much_noise_is_not_found_and_stays_below_its_ceiling(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """A null: at a noise multiplier of 20 the ceiling is .51. Would catch a score that knows who took part."""
    found = results(small, tmp_path, noise_multiplier=20.0)
    for view in ("one company", "the opened sum"):
        release = area(found, view)
        assert release.outcome == "not found"
        assert release.value is not None
        assert release.value.low <= 0.5 <= release.value.high
        assert release.control is not None
        assert release.control.low > 0.9
        assert release.wins_at is not None
        assert 0.2 < release.wins_at < 20


@pytest.mark.parametrize("mode", [{"mode": "secure_step", "colluders": 1}, {"clipping": "automatic"}])
def test_other_mechanisms_are_attacked_as_they_are(
    small: SimulationSettings, tmp_path: Path, mode: dict[str, object]
) -> None:
    """Would catch a likelihood of another noise or another clip: then little would be told apart at z = 0.3."""
    release = area(results(small, tmp_path, noise_multiplier=0.3, **mode), "the opened sum")
    assert release.value is not None
    assert release.value.value > 0.7


def test_a_clock_that_runs_out_says_nothing(small: SimulationSettings, tmp_path: Path) -> None:
    found = results(small, tmp_path, seconds=1e-3, noise_multiplier=0.2)
    assert [each.outcome for each in found] == ["inconclusive"]
    assert "time ran out after 1 of 120" in found[0].reason
