"""Epsilon against tables, closed forms and independent accountants; calibration against epsilon itself."""

import itertools
import math
import warnings

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from fedblocks.errors import InputError
from fedblocks.privacy.accounting import (
    Guarantee,
    at,
    epsilon,
    largest,
    noise_multiplier_for,
    releases_within,
    round_up,
)
from fedblocks.privacy.events import MAX_STEPS, Event, GaussianSteps

DELTA = 1e-5


def event(rate: float, noise: float, steps: int) -> GaussianSteps:
    return GaussianSteps(sampling_rate=rate, noise_multiplier=noise, steps=steps)


def analytic_gaussian(noise: float, delta: float) -> float:
    """Balle & Wang 2018, Theorem 8, with sensitivity 1, solved for epsilon."""

    def excess(eps: float) -> float:
        first = norm.cdf(1 / (2 * noise) - eps * noise)
        second = math.exp(eps + norm.logcdf(-1 / (2 * noise) - eps * noise))
        return float(first - second - delta)

    return float(brentq(excess, 0, 1 / noise**2 + 20 / noise, xtol=1e-12))


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "expected"), [(0.01, 1.0, 1000, 1.828), (0.01, 1.0, 10_000, 6.188)]
)
def test_known_values(rate: float, noise: float, steps: int, expected: float) -> None:
    assert epsilon([event(rate, noise, steps)], DELTA) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("noise", "steps"), [(0.5, 1), (1.0, 1), (4.0, 100), (20.0, 1000), (0.7, 7)])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_without_sampling_it_is_the_closed_form(noise: float, steps: int, delta: float) -> None:
    exact = analytic_gaussian(noise / math.sqrt(steps), delta)
    assert exact <= epsilon([event(1.0, noise, steps)], delta) <= exact * 1.001


@pytest.mark.parametrize(("rate", "noise", "steps"), itertools.product((0.01, 0.1), (0.8, 2.0), (1, 500)))
def test_between_independent_accountants(rate: float, noise: float, steps: int) -> None:
    ours = epsilon([event(rate, noise, steps)], DELTA)
    prv, rdp = PRVAccountant(), RDPAccountant()
    prv.history = rdp.history = [(noise, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Opacus returns only the upper end of the interval of Gopi et al.; the lower end may not be crossed.
        found = prv._get_dprv(eps_error=0.01, delta_error=DELTA / 1000)
        lower, estimate, _ = found.compute_epsilon(DELTA, DELTA / 1000, 0.01)
        above = rdp.get_epsilon(DELTA)
    assert lower <= ours <= above
    assert ours == pytest.approx(estimate, rel=0.02)


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.01, 1.0, 1), (0.01, 1.0, 300), (0.3, 3.0, 50)])
def test_above_the_optimistic_estimate(rate: float, noise: float, steps: int) -> None:
    step = privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, pessimistic_estimate=False, use_connect_dots=False
    )
    optimistic = step.self_compose(steps).get_epsilon_for_delta(DELTA)
    ours = epsilon([event(rate, noise, steps)], DELTA)
    assert optimistic <= ours
    assert ours <= optimistic + 1.01e-4 * steps + 1e-3 * ours


@pytest.mark.parametrize("delta", [1e-5, 1e-8, 1e-10])
@pytest.mark.parametrize(("noise", "steps"), [(2.0, 10), (10.0, 300), (40.0, 10_000)])
def test_composition_by_fft_stays_above_the_closed_form(noise: float, steps: int, delta: float) -> None:
    # The rate next to 1 takes the way of sampled steps; what it lacks to 1 is far below every tolerance.
    exact = analytic_gaussian(noise / math.sqrt(steps), delta)
    assert exact <= epsilon([event(math.nextafter(1.0, 0.0), noise, steps)], delta) <= exact * 1.02


def test_mixed_kinds_equal_the_library_accountant() -> None:
    events = [event(0.01, 1.0, 500), event(0.05, 2.0, 200), event(1.0, 30.0, 10), event(1.0, 20.0, 5)]
    accountant = PLDAccountant()
    for each in events:
        accountant.compose(each.dp_event())
    assert epsilon(events, DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-3)
    assert epsilon(events, DELTA) >= max(epsilon([each], DELTA) for each in events)


def test_no_events_cost_nothing_and_equal_events_merge() -> None:
    assert epsilon([], DELTA) == 0.0
    parts = [event(0.02, 1.1, 40), event(0.02, 1.1, 2), event(0.02, 1.1, 58)]
    assert epsilon(parts, DELTA) == epsilon([event(0.02, 1.1, 100)], DELTA)
    mixed = [parts[0], event(0.1, 2.0, 3), parts[1], parts[2]]
    assert epsilon(mixed, DELTA) == epsilon(reversed(mixed), DELTA)


def test_monotone() -> None:
    by_steps = [epsilon([event(0.02, 1.0, t)], DELTA) for t in (1, 2, 5, 20, 100, 101, 1000)]
    by_rate = [epsilon([event(q, 1.0, 50)], DELTA) for q in (1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 1.0)]
    by_noise = [epsilon([event(0.05, z, 50)], DELTA) for z in (50, 10, 3, 1.5, 1, 0.7, 0.4, 0.1)]
    by_delta = [epsilon([event(0.05, 1.0, 50)], d) for d in (0.1, 1e-3, 1e-5, 1e-8, 1e-11)]
    for values in (by_steps, by_rate, by_noise, by_delta):
        assert values == sorted(values)
        assert len(set(values)) == len(values)


def test_out_of_arithmetic_reach_is_infinite_not_low() -> None:
    assert epsilon([event(0.01, 1.0, MAX_STEPS)], 1e-10) == math.inf
    assert epsilon([event(0.01, 1e-200, 1)], DELTA) == math.inf
    assert epsilon([event(1e-300, 1e300, 1), event(1.0, 1e300, 1)], DELTA) < 1e-3
    assert 5000 < epsilon([event(0.5, 0.01, 1)], DELTA) < math.inf


@pytest.mark.parametrize(
    ("target", "delta", "rate", "steps"),
    [(3.0, 1e-5, 0.0256, 2000), (8.0, 1e-5, 0.01, 1000), (0.5, 1e-6, 0.01, 1000), (8.0, 1e-5, 1.0, 50),
     (100.0, 1e-5, 0.01, 100), (1.0, 1e-5, 0.3, 1)],
)  # fmt: skip
def test_calibration_round_trip(target: float, delta: float, rate: float, steps: int) -> None:
    noise = noise_multiplier_for(target, delta, rate, steps)
    assert 0.99 * target <= epsilon([event(rate, noise, steps)], delta) <= target
    assert round_up(noise, 5) == noise
    fits = releases_within(target, event(rate, noise, 1), at(delta))
    assert fits >= steps
    assert (
        epsilon([event(rate, noise, fits)], delta) <= target < epsilon([event(rate, noise, fits + 1)], delta)
    )


def test_calibration_says_why_it_cannot() -> None:
    with pytest.raises(InputError, match="already met"):
        noise_multiplier_for(1.0, 1e-2, 1e-4, 1)
    with pytest.raises(InputError, match="above 0"):
        noise_multiplier_for(0.0, 1e-5, 0.1, 1)
    with pytest.raises(InputError, match="cannot be reached"):
        noise_multiplier_for(1e-9, 1e-11, 1.0, 1000)


def test_releases_within_counts_after_what_is_spent() -> None:
    spent, more = [event(0.05, 2.0, 30)], event(0.01, 1.0, 25)

    def after_spent(whole: Event) -> float:
        return epsilon([*spent, whole], DELTA)

    count = releases_within(1.5, more, after_spent)
    assert count > 0
    assert epsilon([*spent, *[more] * count], DELTA) <= 1.5 < epsilon([*spent, *[more] * (count + 1)], DELTA)
    assert releases_within(0.01, more, after_spent) == 0
    whole = event(1e-9, 5.0, MAX_STEPS // 2)
    assert releases_within(0.01, whole, at(1e-2)) == 2


def test_largest() -> None:
    for limit, edge in itertools.product((0, 1, 2, 7, 8, 100), (0, 1, 2, 3, 7, 8, 64, 99, 500)):
        assert largest(lambda n, edge=edge: n <= edge, limit) == min(limit, edge)  # type: ignore[misc]


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, "1e-5"])
def test_delta_is_checked(delta: float) -> None:
    with pytest.raises(InputError, match="delta="):
        epsilon([event(0.1, 1.0, 1)], delta)
    with pytest.raises(InputError, match="delta="):
        noise_multiplier_for(1.0, delta, 0.1, 1)


def test_guarantee_prints_everything_and_rounds_up() -> None:
    assert str(Guarantee(1.82840001, 1e-5, "Poisson-subsampled Gaussian")) == (
        "epsilon=1.829 at delta=1e-05 (Poisson-subsampled Gaussian; unit: one example of one company; "
        "adjacency: add or remove one example; accountant: PLD; composition: one list of releases, fixed beforehand; "
        "against: the coordinator and all other companies together)"
    )


def test_round_up_never_rounds_down() -> None:
    for value in np.concatenate([np.random.default_rng(0).lognormal(0, 8, 2000), [1.0, 10.0, 0.1, 9.9999]]):
        assert value <= round_up(float(value)) <= value * 1.0011
    assert round_up(0.0) == 0.0
    assert round_up(math.inf) == math.inf
    assert round_up(1.5) == 1.5
