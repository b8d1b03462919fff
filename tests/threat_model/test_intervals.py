"""Intervals against data of known law, and against scipy's own."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from fedblocks.errors import InputError
from fedblocks.threat_model.intervals import Estimate, mean, proportion


@given(st.integers(1, 400), st.data())
def test_a_proportion_has_the_exact_interval(n: int, data: st.DataObject) -> None:
    """Oracle: scipy's binomial test; would catch swapped ends and a wrong tail."""
    successes = data.draw(st.integers(0, n))
    found = proportion(successes, n)
    oracle = stats.binomtest(successes, n).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-9)
    assert found.value == successes / n


def test_nothing_of_six_is_at_most_46_percent() -> None:
    """Would catch [0, 0], which a bootstrap of zeros gives."""
    found = proportion(0, 6)
    assert (found.low, found.high) == (0.0, pytest.approx(0.4593, abs=1e-4))


def test_an_exact_interval_covers_at_its_level_whatever_the_share() -> None:
    """Closed form, no simulation: the probability of every count times whether its interval holds the share."""
    n = 23
    found = [proportion(k, n) for k in range(n + 1)]
    for share in np.linspace(0.01, 0.99, 99):
        held = [each.low <= share <= each.high for each in found]
        assert stats.binom.pmf(range(n + 1), n, share)[held].sum() >= 0.95


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (0, 0), (-1, 3), (4, 3)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(InputError, match="successes"):
        proportion(successes, n)


@pytest.mark.parametrize(("clusters", "least"), [(4, 0.93), (12, 0.92), (30, 0.90)])
def test_a_mean_of_clusters_is_covered(clusters: int, least: float) -> None:
    """Would catch a bootstrap of four clusters, which covers in 80%, and intervals over dependent cases."""
    draw = np.random.default_rng(clusters)
    index = np.repeat(np.arange(clusters), 5)
    covered = 0
    for i in range(300):
        values = 3 + draw.normal(0, 1, clusters)[index] + 0.1 * draw.normal(0, 1, len(index))
        found = mean(values, index, seed=i)
        covered += found.low <= 3 <= found.high
    assert covered >= 300 * least


def test_a_mean_of_twenty_cases_holds_at_the_level_that_findings_are_judged_at() -> None:
    """Would catch a bootstrap alone, whose end at 99.9% is the normal law's: it errs in 4 of 1,000 cases
    instead of 0.5."""
    draw = np.random.default_rng(0)
    above = sum(mean(draw.normal(0, 1, 20), level=0.999).low > 0 for _ in range(3000))
    assert above <= 5


def test_few_clusters_are_not_resampled() -> None:
    values = np.random.default_rng(0).normal(0, 1, 25)
    assert mean(values[:19]).method == "student"
    assert mean(values[:20]).method == "cluster-bootstrap"
    oracle = stats.ttest_1samp(values[:19], 0).confidence_interval(0.95)
    found = mean(values[:19])
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))


def test_one_cluster_has_no_interval_and_null_in_json() -> None:
    found = mean(np.array([1.0, 2.0]), np.zeros(2, dtype=np.int64))
    assert (found.low, found.high) == (-math.inf, math.inf)
    text = found.model_dump_json()
    assert json.loads(text)["low"] is None
    assert Estimate.model_validate_json(text) == found


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(InputError, match="values"):
        mean(np.array(values))


def test_an_interval_that_does_not_hold_its_figure_is_no_estimate() -> None:
    with pytest.raises(ValidationError, match="low <= value <= high"):
        Estimate(value=0.5, low=0.6, high=0.9, n=3, method="exact")
