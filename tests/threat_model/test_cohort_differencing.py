"""Differences of two opened sums: the noise that they carry."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.settings import SimulationSettings
from fedblocks.settings.load import validated
from fedblocks.threat_model.attacks import cohort_differencing
from fedblocks.threat_model.attacks.cohort_differencing import ATTACK, variance_ratio
from fedblocks.threat_model.releases import Release, released
from fedblocks.threat_model.results import Result
from fedblocks.threat_model.subject import Subject


def subject_of(small: SimulationSettings, folder: Path, companies: int = 5, **privacy: object) -> Subject:
    raw = small.model_dump()
    raw["privacy"] |= {"epsilon": 1e6, "noise_multiplier": 0.3} | privacy
    raw["companies"]["count"] = companies
    return Subject.of(prepare(validated(SimulationSettings, raw), folder / "run"), block=0)


def first(subject: Subject) -> Result:
    found = next(iter(ATTACK.run(subject)))
    assert isinstance(found, Result)
    return found


@pytest.mark.parametrize("mode", [{}, {"mode": "secure_step", "colluders": 1}])
def test_a_difference_has_the_noise_of_all_its_releases(
    small: SimulationSettings, tmp_path: Path, mode: dict[str, object]
) -> None:
    """Would catch a predicted noise that the mechanism does not make, in full or in shares."""
    found = first(subject_of(small, tmp_path, **mode))
    assert found.outcome == "held"
    assert found.value is not None
    assert found.value.low <= 1 <= found.value.high + 0.05
    assert found.value.high - found.value.low < 0.2


def test_noise_that_is_used_again_is_refuted(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch an audit to which noise of two rounds that cancels is the same as fresh noise."""

    def again(*args: object, noisy: bool, companies: int = 1) -> Release:
        subject, block, nothing, *names = args
        return released(subject, block, nothing, names[-1], noisy=noisy, companies=companies)  # type: ignore[arg-type]

    monkeypatch.setattr(cohort_differencing, "released", again)
    found = first(subject_of(small, tmp_path))
    assert found.outcome == "refuted"
    assert found.value is not None
    assert found.value.value == pytest.approx(1 / 9, rel=0.1)  # the victim's own of nine is left


def test_a_cohort_without_the_victim_that_is_too_small_opens_nothing(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a threshold that is not asked."""
    assert "no sum of 2 is opened" in (ATTACK.applies(subject_of(small, tmp_path, 3)) or "")


def test_the_interval_of_a_variance_holds_it() -> None:
    """Would catch the interval of a deviation printed for a variance, or ends the wrong way round."""
    drawn = 2 * torch.randn(400, 500, generator=torch.Generator().manual_seed(0))
    inside = [each.low <= 1 and each.high >= 1 for each in (variance_ratio(row, 2.0) for row in drawn)]
    assert 0.92 < sum(inside) / len(inside) < 0.98
