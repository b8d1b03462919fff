"""The tests of chance behind the conformance audit: their levels, what they see, and what they do not mistake."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from fedblocks.threat_model.epsilon import checks
from fedblocks.threat_model.epsilon.checks import Check

LEVEL, RUNS = 0.05, 400
Rng = np.random.Generator


def _sizes(n: int, q: float) -> Callable[[Rng], Check]:
    return lambda rng: checks.dispersion(rng.binomial(n, q, 300).astype(float), n, q, LEVEL, "sizes")


def _overlap(rng: Rng) -> Check:
    table = rng.random((200, 50)) < 0.2
    return checks.overlap(int((table[1:] & table[:-1]).sum()), 50, 200, 0.2, LEVEL)


def _pearson(rng: Rng) -> Check:
    return checks.pearson(rng.multinomial(200, [0.1] * 10, 20).astype(float), LEVEL, "places")


SOUND: dict[str, Callable[[Rng], Check]] = {
    "variance": lambda rng: checks.variance(rng.standard_normal(500), LEVEL),
    "distribution": lambda rng: checks.distribution(rng.standard_normal(500), LEVEL),
    "tail": lambda rng: checks.tail(rng.standard_normal(500), LEVEL),
    "own": lambda rng: checks.own_correlation([rng.standard_normal(500) for _ in "ab"], LEVEL, "own"),
    "shifted": lambda rng: checks.shifted_correlation(
        [rng.standard_normal(500) for _ in "abc"], LEVEL, "shifted"
    ),
    "pairs": lambda rng: checks.correlation([rng.standard_normal(500) for _ in "abcdef"], LEVEL, "pairs"),
    "rate": lambda rng: checks.rate(int(rng.binomial(5000, 0.1)), 5000, 0.1, LEVEL, "rate"),
    "sizes": _sizes(800, 0.1),
    "few": _sizes(5, 0.1),
    "places": _pearson,
    "overlap": _overlap,
}


@pytest.mark.parametrize("name", SOUND)
def test_a_level_is_kept(name: str) -> None:
    """Would catch a test that alarms more often than it says: more alarms than chance gives once in 100,000 times."""
    alarms = sum(not SOUND[name](np.random.default_rng([7, i])).held for i in range(RUNS))
    assert alarms <= stats.binom.isf(1e-5, RUNS, LEVEL)


@pytest.mark.parametrize("name", ["variance", "tail", "rate", "places"])
def test_an_exact_level_is_used(name: str) -> None:
    """Would catch intervals that are far too wide, which find nothing."""
    alarms = sum(not SOUND[name](np.random.default_rng([8, i])).held for i in range(RUNS))
    assert alarms >= stats.binom.ppf(1e-5, RUNS, LEVEL / 2)


def test_what_each_test_is_for_is_seen_at_the_level_of_an_audit() -> None:
    """Would catch a test without power: each case is a broken mechanism, its other properties in order."""
    rng, level = np.random.default_rng(0), 1e-8
    noise = rng.standard_normal(20_000)
    assert not checks.variance(0.9 * noise, level).held
    assert not checks.variance(noise + 0.5, level).held
    flat = rng.uniform(-(3**0.5), 3**0.5, 20_000)
    assert checks.variance(flat, level).held
    assert not checks.distribution(flat, level).held
    cut = np.clip(noise, -2.5, 2.5)
    assert not checks.tail(cut, level).held
    assert not checks.tail(np.append(noise, 9.0), level).held
    period = np.tile(noise[:5000], 4)
    assert not checks.own_correlation([period], level, "period").held
    late = np.roll(noise, 77)
    assert not checks.shifted_correlation([noise, late], level, "late").held
    assert checks.correlation([noise, late], level, "late").held
    assert not checks.correlation(
        [rng.standard_normal(20_000), noise, 0.1 * late + noise], level, "same"
    ).held


def test_an_interval_that_excludes_the_promise_is_the_reason() -> None:
    """Would catch a verdict that its own numbers contradict."""
    for check in (
        checks.variance(0.8 * np.random.default_rng(0).standard_normal(5000), 1e-6),
        checks.rate(700, 5000, 0.1, 1e-6, "rate"),
        checks.dispersion(np.full(500, 80.0), 800, 0.1, 1e-6, "sizes"),
    ):
        low, high = check.estimate.low, check.estimate.high
        assert not check.held
        assert not low <= 1 <= high
        assert f"{check.estimate.value:.5g}" in check.reason
        assert check.estimate.level >= 1 - 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.001])
def test_a_bound_without_chance_is_not_held_by_what_is_no_number(value: float) -> None:
    """Would catch NaN that passes a comparison, and a value that a stored estimate cannot hold."""
    check = checks.within("moved", value, 1.0, 3, "clips")
    assert not check.held
    assert np.isfinite(check.estimate.value)


def test_a_constant_size_is_too_little_variance_and_few_counts_are_no_alarm() -> None:
    """Would catch shuffled batches that look like Poisson ones, and an upper bound of zero where counts are few."""
    assert not checks.dispersion(np.full(200, 80.0), 800, 0.1, 1e-8, "sizes").held
    assert checks.dispersion(np.zeros(1), 24, 1e-6, 1e-8, "one example").held
