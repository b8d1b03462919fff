"""Which classes a company holds: counts in a sum, and the property of a company."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.settings import SimulationSettings
from fedblocks.settings.load import validated
from fedblocks.threat_model.attacks.label_presence import ATTACK
from fedblocks.threat_model.label_counts import Classes, noise, summed
from fedblocks.threat_model.membership.sums import Participation
from fedblocks.threat_model.releases import released
from fedblocks.threat_model.results import Result
from fedblocks.threat_model.subject import Subject


def subject_of(small: SimulationSettings, folder: Path, z: float) -> Subject:
    raw = small.model_dump()
    raw["privacy"] |= {"epsilon": 1e6, "noise_multiplier": z}
    return Subject.of(prepare(validated(SimulationSettings, raw), folder / "run"), block=0)


def test_counts_of_a_real_sum_are_those_of_its_classes(small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch columns that name another class, and products that are not those of the mechanism's gradients."""
    subject = subject_of(small, tmp_path, 0.2)
    problem, mechanism = subject.problem(0), subject.mechanism(0)
    classes = Classes.fit(problem, mechanism, subject.public, 30, torch.Generator().manual_seed(0))
    right = 0
    for column, label in enumerate(classes.present):
        own = subject.public[(subject.public.targets == label).nonzero()[:12, 0]]
        vector = released(subject, 0, own, "counts", label, noisy=False).vector
        counts = classes.scores((classes.means @ vector).numpy(), 0.0)
        right += int(counts.argmax()) == column
        mine = classes.products(own, torch.Generator().manual_seed(1)).sum(0)
        assert np.linalg.norm(mine - (classes.means @ vector).numpy()) < 0.3 * np.linalg.norm(mine)
    assert right >= 8


def test_noise_and_batches_follow_their_laws() -> None:
    """Would catch noise of another covariance, and batches that take everybody or no one."""
    rng = np.random.default_rng(0)
    m = rng.normal(size=(3, 8))
    drawn = np.array([noise(m @ m.T, 2.0, rng) for _ in range(20_000)])
    assert np.cov(drawn.T) == pytest.approx(4 * m @ m.T, abs=0.9)
    often = [float(summed(np.ones((200, 1)), Participation(1, 0.3), 5, rng)[0]) for _ in range(200)]
    assert np.mean(often) == pytest.approx(300, abs=5)


def test_classes_of_a_company_are_found_without_much_noise_and_not_in_much(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a score that reads labels at any noise, or none; and words that are missing."""
    subject = subject_of(small, tmp_path, 0.05)
    assert ATTACK.applies(subject) is None
    found = next(iter(ATTACK.run(subject)))
    lost = next(iter(ATTACK.run(replace(subject, plan=subject.plan.changed(noise_multiplier=300.0)))))
    assert isinstance(found, Result)
    assert isinstance(lost, Result)
    assert found.statement == "property"
    assert found.outcome == "found"
    assert lost.outcome == "not found"
    for each in (found, lost):
        assert "has no epsilon" in each.reason
        assert each.wins_at is not None
        assert 0.05 <= each.wins_at < 300
