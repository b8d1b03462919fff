"""k examples of one person: against closed forms and against the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from fedblocks.errors import InputError
from fedblocks.privacy.accounting import epsilon
from fedblocks.privacy.events import EpochGaussian, GaussianSteps, NoNoise, SkellamSteps
from fedblocks.privacy.group_privacy import group_epsilon

DELTA = 1e-5


def gaussian(mu: float) -> float:
    """Balle and Wang 2018, theorem 8, solved for epsilon: an oracle that shares no code."""

    def excess(e: float) -> float:
        tail = stats.norm.cdf(-e / mu - mu / 2)
        return float(stats.norm.cdf(mu / 2 - e / mu) - math.exp(e) * tail - DELTA)

    return float(optimize.brentq(excess, 0, 200))


@pytest.mark.parametrize("k", [2, 5])
def test_of_releases_without_sampling_it_is_a_gaussian_of_k_clips(k: int) -> None:
    """Would catch a group that is moved by one clip, or by the root of k."""
    exact = gaussian(k * math.sqrt(4) / 6.0)
    for event in (
        GaussianSteps(sampling_rate=1.0, noise_multiplier=6.0, steps=4),
        EpochGaussian(noise_multiplier=6.0, epochs=4),
    ):
        assert exact * (1 - 1e-6) <= group_epsilon(event, k, DELTA) <= exact * 1.02


def test_of_a_sampled_release_it_covers_what_k_examples_do() -> None:
    """Would catch weights other than the binomial's: the exact delta of one step, integrated, must not pass ours."""
    q, z, k = 0.1, 1.2, 3
    event = GaussianSteps(sampling_rate=q, noise_multiplier=z, steps=1)
    found = group_epsilon(event, k, DELTA)
    x = np.linspace(-12 * z, 12 * z + k, 200_001)
    with_all = sum(stats.binom.pmf(n, k, q) * stats.norm.pdf(x, n, z) for n in range(k + 1))
    without = stats.norm.pdf(x, 0, z)
    deltas = [
        float(np.trapezoid(np.maximum(one - math.exp(found) * other, 0), x))
        for one, other in ((with_all, without), (without, with_all))
    ]
    assert 0.8 * DELTA <= max(deltas) <= DELTA
    assert epsilon([event], DELTA) < found


def test_others_are_converted_by_the_definition() -> None:
    """Would catch k times epsilon at the same delta, which the definition does not give."""
    event = SkellamSteps(sampling_rate=0.01, steps=1, l2=100.0, l1=1000.0, variance=2.5e7, beta=1e-12)
    one, two = epsilon([event], DELTA), group_epsilon(event, 2, DELTA)
    assert two >= 2 * one
    assert two < 20 * one
    assert math.isinf(group_epsilon(NoNoise(steps=1), 2, DELTA))
    assert group_epsilon(event, 1, DELTA) == one
    with pytest.raises(InputError, match="examples=0"):
        group_epsilon(event, 0, DELTA)
