"""Membership from a released model: the scores against laws that are known, and one trained block."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.settings import SimulationSettings
from fedblocks.threat_model.attacks.model_membership import ATTACK
from fedblocks.threat_model.clock import Clock
from fedblocks.threat_model.intervals import Array
from fedblocks.threat_model.membership.scores import SCORES, Shadows, bavaria, lira, loss_threshold, rmia
from fedblocks.threat_model.membership.shadows import Signals
from fedblocks.threat_model.results import Result
from fedblocks.threat_model.roc import auc
from fedblocks.threat_model.subject import Subject


def made_up(shadows: int, n: int = 2000, seed: int = 0) -> tuple[Array, Shadows, np.ndarray]:  # type: ignore[type-arg]
    """Candidates of different hardness (deviation 3) and noise; being a member adds 1."""
    rng = np.random.default_rng(seed)
    hardness, spread = 3 * rng.normal(size=n), rng.uniform(0.5, 1.5, n)
    inside = rng.random((shadows + 1, n)) < 0.5
    signals = hardness + inside + spread * rng.normal(size=(shadows + 1, n))
    return signals[:1], Shadows(signals[1:, None], inside[1:]), inside[0]


def area(scores: Array, member: np.ndarray) -> float:  # type: ignore[type-arg]
    return auc(scores[member], scores[~member]).value


def test_shadows_take_hardness_out() -> None:
    """Would catch a score that ignores shadows, or takes members for others: hard candidates hide the difference."""
    target, shadows, member = made_up(8)
    threshold = area(loss_threshold(target, shadows), member)
    assert 0.5 < threshold < 0.65
    for score in (lira, rmia, bavaria):
        assert area(score(target, shadows), member) > threshold + 0.06


def test_bavaria_is_best_with_few_shadows_and_meets_lira_with_many() -> None:
    """Would catch priors that are lost, or that never give way: its reason is few shadows."""
    few = [made_up(3, seed=seed) for seed in range(4)]
    mean = {name: np.mean([area(score(t, s), m) for t, s, m in few]) for name, score in SCORES.items()}
    assert mean["BaVarIA"] > mean["LiRA"] + 0.005
    target, shadows, member = made_up(200, n=500)
    assert area(bavaria(target, shadows), member) == pytest.approx(
        area(lira(target, shadows), member), abs=0.03
    )


def test_many_shadows_give_the_likelihood_ratio_itself() -> None:
    """Would catch a wrong scale or location: with thousands of shadows the predictive law is the candidate's own."""
    rng = np.random.default_rng(1)
    inside = rng.random((20_000, 2)) < 0.5
    spread = np.array([0.5, 2.0])
    signals = inside * 1.5 + spread * rng.normal(size=inside.shape)
    target = np.array([[1.0, -0.5]])
    exact = stats.norm.logpdf(target, 1.5, spread) - stats.norm.logpdf(target, 0, spread)
    assert bavaria(target, Shadows(signals[:, None], inside)) == pytest.approx(exact[0], abs=0.05)


def test_a_candidate_that_every_shadow_knows_is_no_failure() -> None:
    """Would catch a mean over no shadow at all, which is no number."""
    target, shadows, _ = made_up(2, n=50)
    for score in SCORES.values():
        assert np.isfinite(score(target, shadows)).all()


@pytest.fixture(scope="module")
def subject(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject.of(prepare(small, tmp_path_factory.mktemp("shadows") / "run"), block=0)


def test_a_model_before_its_first_round_has_no_members(subject: Subject) -> None:
    assert "nothing was trained" in (ATTACK.applies(subject) or "")


def trained(subject: Subject) -> Subject:
    return replace(subject, checkpoint=replace(subject.checkpoint, round=1))


def test_a_model_without_members_tells_none_and_the_control_does(subject: Subject) -> None:
    """The public model as if it were released. Would catch scores that read the truth, and a control that is void."""
    assert ATTACK.applies(trained(subject)) is None
    results = [each for each in ATTACK.run(trained(subject)) if isinstance(each, Result)]
    assert len(results) == len(SCORES)
    for each in results:
        assert each.outcome in ("not found", "inconclusive")
        assert each.value is not None
        assert each.control is not None
        assert each.baseline is not None
        assert each.control.value > 0.6
    assert (
        results[0].value == results[0].baseline
    )  # the loss threshold on the public model is the blind guess


def test_few_seconds_are_inconclusive(subject: Subject) -> None:
    """Would catch "not found" from shadows that have hardly been trained."""
    results = list(ATTACK.run(trained(subject).within(Clock(1e-3))))
    assert all(isinstance(each, Result) and each.outcome == "inconclusive" for each in results)


def test_signals_are_of_the_same_draws(subject: Subject) -> None:
    """Would catch draws that differ from model to model, whose noise would drown what the models differ in."""
    examples = subject.public[:30]
    signals = Signals(subject.model, 0, subject.objective, examples, torch.Generator().manual_seed(0))
    first = signals.of(subject.model)
    assert first.shape == (3, 30)
    assert np.array_equal(first, signals.of(subject.model))
