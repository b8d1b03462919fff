"""Telling members from non-members: closed forms and an independent library."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score

from fedblocks.errors import InputError
from fedblocks.threat_model.gate import Gate
from fedblocks.threat_model.roc import auc, gaussian_auc, hits_at, log_mean_exp


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 10**6))
def test_the_area_is_that_of_scikit_learn(m: int, n: int, seed: int) -> None:
    """With ties: scores are whole numbers."""
    draw = np.random.default_rng(seed)
    members, others = draw.integers(0, 6, m).astype(float), draw.integers(-2, 5, n).astype(float)
    oracle = roc_auc_score([1] * m + [0] * n, np.concatenate([members, others]))
    assert auc(members, others).value == pytest.approx(oracle)


@pytest.mark.parametrize(("mu", "n"), [(0.0, 40), (0.8, 40), (0.8, 150), (2.5, 60)])
def test_its_interval_covers_the_true_area(mu: float, n: int) -> None:
    """Closed form: the area of two Gaussians a distance mu apart. Would catch a variance of one sample alone."""
    covered = 0
    for seed in range(300):
        draw = np.random.default_rng(seed)
        found = auc(draw.normal(mu, 1, n), draw.normal(0, 1, n))
        covered += found.low <= gaussian_auc(mu) <= found.high
    assert covered >= 300 * 0.92


@pytest.mark.parametrize(("area", "n"), [(0.7, 4), (0.8, 6), (0.9, 10), (0.95, 20), (0.99, 50)])
def test_the_interval_of_few_scores_holds_at_high_levels_too(area: float, n: int) -> None:
    """A time limit leaves few scores, and what lies above a ceiling at 99.9% refutes a run. Would catch DeLong's
    interval, which begins above the true area in 3 to 9% of these instead of 0.05%."""
    above = wrong = 0
    for seed in range(500):
        draw = np.random.default_rng(seed)
        members, others = draw.normal(np.sqrt(2) * stats.norm.ppf(area), 1, n), draw.normal(0, 1, n)
        above += auc(members, others, level=0.999).low > area
        found = auc(members, others)
        wrong += not found.low <= area <= found.high
    assert above <= 2
    assert wrong <= 500 * 0.08


def test_the_interval_is_the_same_for_reversed_scores() -> None:
    """Would catch an upper end that is not the lower end's mirror image."""
    draw = np.random.default_rng(0)
    members, others = draw.normal(1, 1, 9), draw.normal(0, 1, 5)
    found, reversed_ = auc(members, others), auc(-members, -others)
    assert (1 - reversed_.high, 1 - reversed_.low) == pytest.approx((found.low, found.high))


def test_scores_that_part_wholly_are_not_certain() -> None:
    """Would catch the interval [1, 1] of ten cases."""
    found = auc(np.arange(10.0) + 100, np.arange(10.0))
    assert found.value == 1.0
    assert 0.5 < found.low < 0.99


def test_a_low_rate_of_false_alarms_needs_enough_non_members() -> None:
    """Would catch hits at 0.1% of 100 non-members, where one case decides."""
    draw = np.random.default_rng(0)
    with pytest.raises(InputError, match="at least 3,000"):
        hits_at(draw.normal(1, 1, 100), draw.normal(0, 1, 2999), 0.001)
    with pytest.raises(InputError, match="at least 300"):
        hits_at(draw.normal(1, 1, 100), draw.normal(0, 1, 100), 0.01)
    found = hits_at(draw.normal(3, 1, 4000), draw.normal(0, 1, 40_000), 0.001)
    assert found.low <= stats.norm.sf(stats.norm.isf(0.001) - 3) <= found.high


def test_the_default_limit_is_what_epsilon_8_allows() -> None:
    """Oracle: the Gaussian's privacy profile (Balle & Wang 2018, theorem 8), solved for mu."""

    def delta(mu: float) -> float:
        return float(stats.norm.cdf(mu / 2 - 8 / mu) - np.exp(8) * stats.norm.cdf(-mu / 2 - 8 / mu))

    mu = brentq(lambda m: delta(m) - 1e-5, 0.5, 4)
    assert gaussian_auc(mu) == pytest.approx(Gate().membership, abs=0.005)


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="scores"):
        auc(np.array([1.0, np.nan]), np.array([0.0, 1.0]))
    with pytest.raises(InputError, match="scores"):
        auc(np.array([1.0]), np.array([0.0, 1.0]))


def test_log_mean_exp_of_large_exponents() -> None:
    values = np.array([[1000.0, 1000.0], [-1000.0, -2000.0]])
    assert log_mean_exp(values) == pytest.approx([1000.0, -1000.0 + np.log(0.5)])
