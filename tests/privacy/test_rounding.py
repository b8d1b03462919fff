"""What floating point costs: small, charged, and infinite where nothing is proven."""

import itertools
import math

import numpy as np
import pytest
import torch

from fedblocks.privacy.accounting import epsilon
from fedblocks.privacy.events import Event, GaussianSteps, SkellamSteps
from fedblocks.privacy.mechanisms.gaussian import grid, release
from fedblocks.privacy.randomness import Randomness
from fedblocks.privacy.rounding import RESERVE, slack, with_slack

DELTA = 1e-5


def steps(dimension: int | None, count: int = 1000, noise: float = 1.0) -> GaussianSteps:
    return GaussianSteps(sampling_rate=0.01, noise_multiplier=noise, steps=count, dimension=dimension)


def test_forty_million_values_cost_some_hundred_thousandths_of_epsilon() -> None:
    """A bound by total variation took 3.8e-5 of delta for them, where 1e-5 was promised."""
    assert 2 * slack(40_000_000, 8.0, DELTA) < 6e-5
    assert 2 * slack(10**10, 8.0, DELTA) < 2e-3
    real, machine = epsilon([steps(None, 4000)], DELTA), epsilon([steps(10_000, 4000)], DELTA)
    assert real < machine < real * 1.0002


def test_it_grows_with_values_and_with_what_is_asked() -> None:
    found = [slack(values, 8.0, DELTA) for values in (1, 2, 1000, 10**6, 10**9, 10**12)]
    assert found == sorted(set(found))
    by_epsilon = [slack(10**6, value, DELTA) for value in (0.0, 1.0, 8.0, 50.0)]
    assert by_epsilon == sorted(set(by_epsilon))
    assert slack(10**6, 8.0, 1e-8) > slack(10**6, 8.0, DELTA)


def test_where_nothing_is_proven_it_is_infinite() -> None:
    assert slack(10**6, math.inf, DELTA) == math.inf
    assert slack(10**6, 2000.0, DELTA) == math.inf
    assert with_slack(lambda delta: 8.0, 10**16, DELTA) == math.inf
    # An account that leaps where a little of delta is taken away.
    assert with_slack(lambda delta: 1.0 if delta >= DELTA * (1 - RESERVE) else 9.0, 10**6, DELTA) == math.inf


def test_delta_pays_for_what_is_improbable() -> None:
    asked: list[float] = []

    def account(delta: float) -> float:
        asked.append(delta)
        return 1.0

    assert with_slack(account, 0, DELTA) == 1.0
    assert asked == [DELTA]
    total = with_slack(account, 10**6, DELTA)
    s = (total - 1.0) / 2
    assert s == pytest.approx(slack(10**6, 1.0, DELTA), rel=1e-6)
    assert math.exp(s) * asked[-1] <= DELTA * (1 - RESERVE)


def test_every_gaussian_account_charges_it_and_integers_do_not() -> None:
    skellam = SkellamSteps(sampling_rate=0.1, steps=10, l2=1000.0, l1=3e4, variance=4e6, beta=2.0**-40)
    lists: list[tuple[list[Event], list[Event]]] = [
        ([steps(None)], [steps(10**7)]),
        ([steps(None, noise=9.0), skellam], [steps(10**7, noise=9.0), skellam]),
    ]
    for real, machine in lists:
        assert epsilon(real, DELTA) < epsilon(machine, DELTA)
    assert skellam.values == 0
    values = [epsilon([steps(dimension)], DELTA) for dimension in (1, 10**3, 10**6, 10**9)]
    assert values == sorted(set(values))


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="needs extended precision as the oracle")
@pytest.mark.parametrize("x", [0.0, 1 / 3, -12345.678, 1e9, 2.0**-40])
def test_a_release_leaves_the_cell_of_real_arithmetic_only_next_to_its_edge(x: float) -> None:
    """What scaling and adding contribute: (2 |n| + 1) 2^-53 deviations, for any size of the sum."""
    sigma, n = 0.7, Randomness.from_seed(5, str(x)).normal(200_000)
    unit = grid(sigma)
    released = release(
        torch.full((len(n),), x, dtype=torch.float64), torch.from_numpy(n.copy()), sigma
    ).numpy()
    extended = np.longdouble
    whole = extended(x) / extended(unit)
    real = whole + n.astype(extended) * (extended(sigma) / extended(unit))
    nearest = np.abs(real - np.floor(real) - extended(0.5))  # to an edge, in units of the grid
    bound = (2 * np.abs(n) + 1) * 2.0**-53 * (sigma / unit) + 1e-18 * abs(whole)
    inside = nearest > bound
    assert inside.mean() > 0.99
    assert np.array_equal(released[inside] / unit, np.rint(real[inside]).astype(np.float64))


def test_values_are_those_of_all_steps() -> None:
    for count, dimension in itertools.product((1, 7), (1, 10)):
        assert steps(dimension, count).values == count * dimension
    assert steps(None).values == 0
    assert steps(3, 5).times(4).values == 60
