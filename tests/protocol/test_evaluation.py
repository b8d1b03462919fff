"""What an evaluation releases: bounded contributions, noise of the variance that is charged, intervals that cover."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fedblocks.errors import InputError
from fedblocks.experiments.simulation.preparation import fresh_model, make_plan
from fedblocks.privacy.events import GaussianSteps, SharedSkellamSteps
from fedblocks.privacy.randomness import Randomness
from fedblocks.protocol.evaluation import (
    BITS,
    CLIP,
    contribution,
    decoded,
    deviation,
    encoded,
    evaluation_event,
    evaluation_terms,
    length,
)
from fedblocks.server.federated_evaluation import quality_of
from fedblocks.settings import Plan, SimulationSettings, validated

SHARED = {"mode": "secure_step", "dropouts": 1, "colluders": 1}


def settings_with(
    small: SimulationSettings, privacy: dict[str, Any] | None = None, **told: Any
) -> SimulationSettings:
    raw = small.model_dump()
    raw["evaluation"] = {"noise_multiplier": 5.0, **told}
    raw["privacy"] |= privacy or {}
    raw["training"]["local_steps"] = 1
    return validated(SimulationSettings, raw)


def plan_with(small: SimulationSettings, privacy: dict[str, Any] | None = None, **told: Any) -> Plan:
    settings = settings_with(small, privacy, **told)
    return make_plan(settings, fresh_model(settings), "run")


def test_plans_without_an_evaluation_have_the_digest_that_they_had(small: SimulationSettings) -> None:
    """Would catch a field that ends every run, approval and policy of before."""
    plan = make_plan(small, fresh_model(small), "run")
    assert "evaluation" not in plan.model_dump_json()
    judged = plan.changed(evaluation={"noise_multiplier": 5.0})
    assert judged.digest() != plan.digest()
    assert Plan.model_validate_json(judged.model_dump_json()) == judged


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, 7.0, -3.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("by_class", [False, True])
def test_no_example_adds_more_than_the_clip(small: SimulationSettings, value: float, by_class: bool) -> None:
    """Sensitivity: would catch a score that is not bounded, and an example that counts in two classes."""
    plan = plan_with(small, by_class=by_class)
    for label in (0, 9):
        added = contribution(plan, value, label)
        assert added.shape == (length(plan),)
        assert np.isfinite(added).all()
        assert np.linalg.norm(added) <= CLIP
        assert added[length(plan) // 2 :].sum() == 1.0


def test_what_is_no_number_counts_as_the_worst(small: SimulationSettings) -> None:
    """Would catch a model that is judged better for every example on which it fails."""
    assert contribution(plan_with(small), math.nan, 0).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("privacy", [None, SHARED], ids=["local", "shared"])
@pytest.mark.parametrize("missing", [0, 1])
def test_the_opened_sum_is_the_true_one_with_the_noise_that_is_said(
    small: SimulationSettings, privacy: dict[str, Any] | None, missing: int
) -> None:
    """Statistics over 250 sums of five companies: would catch noise of another variance, a bias, a sum that wraps."""
    plan, times, companies = plan_with(small, privacy), 250, 5
    totals = [np.array([100.0 * i, 1000.0 * i]) for i in range(1, companies + 1)]
    there = totals[missing:]
    errors = []
    for t in range(times):
        residues = np.zeros(2, np.uint32)
        for i, total in enumerate(there):
            residues += encoded(plan, companies, total, Randomness.from_seed(7, "test", t, i))
        residues &= np.uint32(2**BITS - 1)
        errors.append(decoded(plan, companies, residues) - sum(there))
    found, said = np.concatenate(errors), deviation(plan, companies, len(there))
    n = len(found)
    assert abs(found.mean()) < 5 * said / math.sqrt(n)
    assert abs(found.var() / said**2 - 1) < 5 * math.sqrt(2 / n)


def test_the_event_counts_the_noise_that_honest_companies_add(small: SimulationSettings) -> None:
    """What is charged: nothing for sampling, and of shared noise what is left without the tolerated."""
    local = evaluation_event(plan_with(small, by_class=True))
    assert local == GaussianSteps(sampling_rate=1.0, noise_multiplier=5.0, steps=1, dimension=20)
    plan = plan_with(small, SHARED)
    shared = evaluation_event(plan, 5)
    assert isinstance(shared, SharedSkellamSteps)
    assert (shared.sampling_rate, shared.shares, shared.colluders) == (1.0, 3, 1)
    # All five add noise; of three of them the variance is the event's, in the levels of its l2.
    level = shared.l2 / CLIP
    assert math.sqrt(3 / 5) * deviation(plan, 5, 5) == pytest.approx(
        math.sqrt(shared.variance) / level, rel=0.05
    )
    assert evaluation_event(plan, 5) == evaluation_event(plan)


@pytest.mark.parametrize(
    ("every", "rounds", "times"), [(0, 4, 1), (1, 4, 4), (2, 4, 2), (3, 4, 2), (9, 4, 1)]
)
def test_a_ledger_is_pinned_to_as_many_as_come_due(
    small: SimulationSettings, every: int, rounds: int, times: int
) -> None:
    """Would catch one evaluation more than was accounted, or fewer than a run wants to make."""
    plan = plan_with(small, every=every)
    assert plan.evaluation is not None
    assert evaluation_terms(plan).releases == times
    assert sum(plan.evaluation.due(r, rounds) for r in range(1, rounds + 1)) == times


def test_the_target_pays_for_training_and_evaluations(small: SimulationSettings) -> None:
    """Would catch a run whose companies' ceiling is its epsilon, and which cannot reach its end."""
    without = make_plan(small, fresh_model(small), "run")
    assert plan_with(small, every=1).noise_multiplier > without.noise_multiplier
    with pytest.raises(InputError, match="evaluations alone cost"):
        plan_with(small, every=1, noise_multiplier=0.5)


@pytest.mark.parametrize(
    "told", [{"largest": 2.0}, {"noise_multiplier": 0.0}, {"every": -1}], ids=["largest", "noise", "every"]
)
def test_what_makes_no_sense_is_refused_when_it_is_set(
    small: SimulationSettings, told: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="evaluation"):
        settings_with(small, **told)


@pytest.mark.parametrize(
    ("quality", "examples", "noise"), [(0.8, 1000, 30.0), (0.5, 200, 20.0), (0.99, 3000, 60.0)]
)
def test_the_interval_covers_the_truth_as_often_as_it_says(
    quality: float, examples: int, noise: float
) -> None:
    """Over 3000 evaluations, of examples drawn anew: would catch an interval without the noise, or without the spread
    of few examples, and one that is far too wide."""
    generator = np.random.default_rng(1)
    covered, widths = 0, []
    for _ in range(3000):
        right = generator.binomial(examples, quality)
        seen = quality_of(right + noise * generator.normal(), examples + noise * generator.normal(), noise)
        assert seen.low is not None
        assert seen.high is not None
        covered += seen.low <= quality <= seen.high
        widths.append(seen.high - seen.low)
    assert 0.935 < covered / 3000 <= 0.99
    assert np.mean(widths) < 5 * math.hypot(noise * 1.5 / examples, 0.5 / math.sqrt(examples))


def test_too_few_examples_have_no_quality() -> None:
    """Would catch a division by a count that is noise, whose interval would be everything or nonsense."""
    for count in (-50.0, 0.0, 30.0, 99.0):
        seen = quality_of(20.0, count, 20.0)
        assert (seen.value, seen.low, seen.high) == (None, None, None)
    assert quality_of(80.0, 101.0, 20.0).value is not None
