"""Plans chosen after looking: an attack that breaks the account of the list, and the rules that bound it."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp.rdp_privacy_accountant import compute_delta, compute_epsilon
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from fedblocks.errors import BudgetExceeded, InputError, LedgerError
from fedblocks.privacy.accounting import at, calibrate, epsilon
from fedblocks.privacy.composition import (
    COMPOSITIONS,
    MAX_KINDS,
    RENYI,
    RUNS,
    BasicComposition,
    RenyiFilter,
    Run,
    Terms,
    composition,
    fitting,
    order_for,
    rounded,
    run_epsilon,
    share,
)
from fedblocks.privacy.events import (
    EpochGaussian,
    Event,
    FixedSizeGaussianSteps,
    GaussianSteps,
    SkellamSteps,
    TruncatedGaussianSteps,
)
from fedblocks.privacy.ledger import Ledger
from fedblocks.privacy.rdp import ORDERS, epsilon_at
from fedblocks.privacy.rounding import RESERVE, slack

DELTA, CEILING = 1e-5, 8.0

# --- an adversary who chooses the next plan by the privacy loss so far --------------------------------------------

WIDTH, CELLS = 0.02, 4001
LOSS: NDArray[np.float64] = (np.arange(CELLS) - CELLS // 2) * WIDTH
# What ending with this loss adds to delta at the ceiling: E[(1 - exp(8 - loss))+].
ENDING: NDArray[np.float64] = np.maximum(0, -np.expm1(CEILING - LOSS))


def gaussian(rate: float, noise: float, steps: int = 1) -> GaussianSteps:
    return GaussianSteps(sampling_rate=rate, noise_multiplier=noise, steps=steps, dimension=1)


def loss_of(plan: GaussianSteps) -> NDArray[np.float64]:
    """(CELLS,) law of the plan's privacy loss, rounded down: an adversary has at least this."""
    step = privacy_loss_distribution.from_gaussian_mechanism(
        plan.noise_multiplier,
        sampling_prob=plan.sampling_rate,
        pessimistic_estimate=False,
        use_connect_dots=False,
        value_discretization_interval=WIDTH,
    )
    found = step._pmf_remove.to_dense_pmf()
    law = np.zeros(CELLS)
    np.add.at(
        law,
        np.clip(found._lower_loss + np.arange(len(found._probs)) + CELLS // 2, 0, CELLS - 1),
        found._probs,
    )
    return law


def before(value: NDArray[np.float64], plan: GaussianSteps) -> NDArray[np.float64]:
    """The value, by the loss before the plan, of having `value` by the loss after it."""
    wide = np.concatenate([np.zeros(CELLS // 2), value, np.full(CELLS // 2, value[-1])])
    found: NDArray[np.float64] = fftconvolve(wide, loss_of(plan)[::-1], mode="valid")
    return found


def delta_at_ceiling(first: GaussianSteps, then: Sequence[GaussianSteps]) -> float:
    """Of an adversary who runs `first`, and by its outcome one of `then`, or stops."""
    best = np.maximum.reduce([ENDING, *(before(ENDING, plan) for plan in then)])
    return float(before(best, first)[CELLS // 2])


def rarest(fits: object, noise: float = 0.1) -> GaussianSteps:
    """The likeliest plan that shows the example with probability q, and nothing else, that still `fits`."""
    low, high = 1e-7, 1e-3
    for _ in range(16):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if fits(gaussian(middle, noise)) else (low, middle)  # type: ignore[operator]
    return gaussian(low, noise)


def test_the_list_that_happened_is_no_bound_for_plans_chosen_after_looking() -> None:
    """Control of the attack: two plans, whichever was chosen below epsilon 8 by the list, and delta nearly twice."""
    half = gaussian(1.0, calibrate(lambda z: gaussian(1.0, z, 2), CEILING, at(DELTA)))
    gamble = rarest(lambda plan: epsilon([half, plan], DELTA) <= CEILING)
    for then in (half, gamble):
        assert 7.85 < epsilon([half, then], DELTA) <= CEILING
        assert delta_at_ceiling(half, [then]) <= DELTA
    # Where the loss is high enough another half pays, elsewhere the gamble does: each takes its own full delta.
    assert delta_at_ceiling(half, [half, gamble]) > 1.8 * DELTA


@pytest.mark.parametrize("rule", COMPOSITIONS)
@pytest.mark.parametrize("share_of_first", [0.3, 0.5, 0.7, 0.95])
def test_whatever_a_ledger_accepts_after_looking_stays_within_its_promise(
    tmp_path: Path, rule: str, share_of_first: float
) -> None:
    """The same adversary against the ledger, with the most that it accepts as a second run of either kind."""
    first = gaussian(1.0, calibrate(lambda z: gaussian(1.0, z), share_of_first * CEILING, at(DELTA)))
    with Ledger.open(tmp_path / "ledger.sqlite", "acme", CEILING, DELTA, rule=rule) as ledger:

        def fits(plan: GaussianSteps) -> bool:
            try:
                ledger.check_plan("second", Terms(plan, 1))
            except BudgetExceeded:
                return False
            return True

        if not fits(first):
            assert share_of_first > 0.7
            return
        ledger.charge(run="first", round=1, block="b", release_id="1", terms=Terms(first, 1))
        noises = np.geomspace(0.3, 100, 200)
        second = gaussian(1.0, float(next(z for z in noises if fits(gaussian(1.0, float(z))))))
        gamble = rarest(fits)
        with pytest.raises(BudgetExceeded):
            ledger.check_plan("second", Terms(gaussian(1.0, 0.3), 1))
    assert delta_at_ceiling(first, [second, gamble]) < DELTA


def test_a_run_that_is_stopped_after_looking_has_cost_the_whole(tmp_path: Path) -> None:
    """Would catch an odometer inside of a run: half of it, then by the outcome the rest or a gamble."""
    half = gaussian(1.0, calibrate(lambda z: gaussian(1.0, z, 2), CEILING, at(0.9 * DELTA)))
    gamble = rarest(lambda plan: epsilon([half, plan], DELTA) <= CEILING)
    with Ledger.open(tmp_path / "ledger.sqlite", "acme", CEILING, DELTA) as ledger:
        ledger.charge(run="first", round=1, block="b", release_id="1", terms=Terms(half, 2))
        with pytest.raises(BudgetExceeded):
            ledger.charge(run="second", round=1, block="b", release_id="2", terms=Terms(gamble, 1))
        with pytest.raises(LedgerError, match="pinned to 2 releases"):
            ledger.charge(run="first", round=2, block="b", release_id="2", terms=Terms(gamble, 2))
        ledger.charge(run="first", round=2, block="b", release_id="2", terms=Terms(half, 2))


# --- the rules ------------------------------------------------------------------------------------------------


def test_shares_of_delta_add_up_to_less_than_delta() -> None:
    assert share(1) == 0.95
    assert all(share(k) > share(k + 1) > 0 for k in range(1, MAX_KINDS + 1))
    assert math.fsum(share(k) for k in range(1, 100_000)) < 1


@pytest.mark.parametrize(
    ("rate", "noise", "steps"), [(0.1, 1.1975, 240), (0.01, 1.0, 1000), (0.5, 10.0, 120), (1.0, 20.0, 50)]
)
def test_a_first_run_costs_hardly_more_than_alone(rate: float, noise: float, steps: int) -> None:
    alone = epsilon([gaussian(rate, noise, steps)], DELTA)
    assert alone < run_epsilon(gaussian(rate, noise, steps), DELTA) <= 1.005 * alone


def test_runs_are_summed_in_the_order_in_which_they_began() -> None:
    one, two = Run(Terms(gaussian(0.1, 2.0), 30), 1), Run(Terms(gaussian(0.02, 1.0), 50), 50)
    rule = BasicComposition(DELTA)
    assert rule.epsilon([one, two]) == epsilon([one.terms.whole], 0.95 * DELTA) + epsilon(
        [two.terms.whole], 0.025 * DELTA
    )
    assert rule.epsilon([one._replace(made=30)]) == rule.epsilon([one])  # whole from its first release on
    assert rule.epsilon([]) == 0.0


def test_the_filter_is_the_conversion_at_one_order_whatever_best_was_later() -> None:
    plans = [gaussian(1.0, 8.0), gaussian(0.2, 3.0)]
    runs = [Run(Terms(plan, 9), made) for plan, made in zip(plans, (9, 4), strict=True)]
    for order in (2.0, 3.9, 16.0):
        rule = RenyiFilter(DELTA, order)
        divergence = 9 * order / 2 / 64
        only_whole = rule.epsilon(runs[:1])
        expected = compute_epsilon([order], [divergence], DELTA * (1 - 2**-7))[0]
        assert only_whole == pytest.approx(expected, rel=1e-6)
        assert only_whole < rule.epsilon(runs) < rule.epsilon([runs[0], runs[1]._replace(made=9)])
        assert rule.epsilon(runs) == rule.epsilon(runs[::-1])
        assert epsilon([plans[0].times(9), plans[1].times(4)], DELTA) < rule.epsilon(runs)


def test_the_order_is_that_at_which_most_gaussian_noise_fits() -> None:
    event = gaussian(1.0, 50.0)
    for ceiling, delta in itertools.product((0.5, 3.0, 8.0, 20.0), (1e-5, 1e-8)):
        best = order_for(ceiling, delta)
        fit = {order: fitting(RenyiFilter(delta, order), [], event, ceiling) for order in ORDERS}
        assert fit[best] >= 0.999 * max(fit.values()) > 0
    assert order_for(0.0, 1e-5) == order_for(8.0, 1e-5)


def test_what_the_filter_cannot_account_is_infinite() -> None:
    capped = TruncatedGaussianSteps(
        sampling_rate=0.01, noise_multiplier=1.0, steps=3, examples=900, batch_cap=20, dimension=9
    )
    assert RenyiFilter(DELTA, 4.0).epsilon([Run(Terms(capped, 1), 1)]) == math.inf
    loose = SkellamSteps(sampling_rate=0.5, steps=1, l2=10.0, l1=90.0, variance=1e6, beta=DELTA / 100)
    assert RenyiFilter(DELTA, 4.0).epsilon([Run(Terms(loose, 1), 1)]) == math.inf
    assert RenyiFilter(DELTA, 4.0).epsilon([Run(Terms(gaussian(1.0, 0.05), 1), 1)]) == math.inf
    assert epsilon_at(4.0, math.nan, DELTA) == math.inf


def noised(dimension: int, releases: int, rate: float = 1.0, noise: float = 1000.0) -> Run:
    event = GaussianSteps(sampling_rate=rate, noise_multiplier=noise, steps=1, dimension=dimension)
    return Run(Terms(event, releases), releases)


@pytest.mark.parametrize("dimension", [1, 10**6, 10**8, 10**9])
def test_the_filter_keeps_its_delta_on_the_machine(dimension: int) -> None:
    """Oracle: dp-accounting's delta of the divergence, and what `rounding` proves: (e' + 2 s, exp(s) d' + reserve).

    Would catch a slack that is left out, or charged to epsilon and not to delta.
    """
    order, run = 3.9, noised(dimension, 100_000)
    s = slack(run.terms.whole.values, 100.0, DELTA)
    found = RenyiFilter(DELTA, order).epsilon([run])
    real = compute_delta([order], [run.made * order / 2 / 1000**2], found - 2 * s)[0]
    assert math.exp(s) * real + RESERVE * DELTA <= DELTA
    assert math.exp(s) * real + RESERVE * DELTA >= 0.99 * DELTA


def test_the_filter_charges_slack_for_values_of_all_runs() -> None:
    """Would catch slack of one run, or of one kind, where the values of all add up."""
    rule, order = RenyiFilter(DELTA, 3.9), 3.9
    few = rule.epsilon([noised(1, 1000), noised(1, 1000, noise=999.0)])
    many = rule.epsilon([noised(10**11, 1000), noised(10**11, 1000, noise=999.0)])
    more = slack(2 * 10**14, 100.0, DELTA) - slack(2000, 100.0, DELTA)
    assert many - few == pytest.approx(more * (2 * order - 1) / (order - 1), rel=1e-6)


def test_beyond_what_is_proven_of_floating_point_the_filter_says_infinite() -> None:
    run = noised(10**9, 1_000_000)
    assert 0.25 < slack(run.terms.whole.values, 100.0, DELTA) < 0.4
    assert RenyiFilter(DELTA, 3.9).epsilon([run]) == math.inf


def test_sensitivities_that_may_fail_leave_the_filter_its_slack() -> None:
    """Would catch a reserve that Skellam steps fill while exp(s) is multiplied to it too."""
    rule, noise = RenyiFilter(DELTA, 3.9), noised(10**11, 1000)

    def skellam(beta: float) -> Run:
        steps = SkellamSteps(sampling_rate=0.5, steps=1, l2=1.0, l1=9.0, variance=1e6, beta=beta)
        return Run(Terms(steps, 1), 1)

    reserve = (2**-7 - RESERVE) * DELTA
    fills, s = skellam(0.999 * reserve), slack(10**14, 100.0, DELTA)
    assert math.isfinite(rule.epsilon([fills]))
    assert rule.epsilon([fills, noise]) == math.inf
    assert math.isfinite(rule.epsilon([skellam(0.999 * reserve * math.exp(-s)), noise]))


def test_sums_of_other_sizes_are_no_other_kind_for_the_filter() -> None:
    """Would catch a coordinator that fills a ledger with plans which differ in the number of values alone."""
    rule = RenyiFilter(DELTA, 3.9)
    runs = [noised(100 + n, 1) for n in range(MAX_KINDS + 5)]
    assert not rule.full(runs, noised(9, 1, noise=7.0).terms)
    assert rule.epsilon(runs) == pytest.approx(rule.epsilon([noised(100, len(runs))]), rel=1e-6)
    kinds = [noised(100, 1, noise=20.0 + n) for n in range(MAX_KINDS)]
    assert not rule.full(kinds, noised(7, 1, noise=20.0).terms)
    assert rule.full(kinds, noised(100, 1, noise=7.0).terms)


def test_a_run_costs_what_its_rounded_terms_cost() -> None:
    """Would catch an account of the terms as they came: plans that differ in a last digit would be accounts anew."""
    one, other = gaussian(0.0123456, 1.2345678, 40), gaussian(0.0123451, 1.2345612, 40)
    assert run_epsilon(one, DELTA) == run_epsilon(other, DELTA) == run_epsilon(rounded(one), DELTA)
    assert run_epsilon(one, DELTA) > epsilon([one], share(1) * DELTA)


def test_compositions_are_named() -> None:
    assert composition(RUNS, DELTA).order is None
    assert composition(RENYI, DELTA, 4.0).order == 4.0
    for name, order in (("list", None), (RENYI, None), (RUNS, 4.0), (RENYI, 4.05), (RENYI, math.nan)):
        with pytest.raises(InputError):
            composition(name, DELTA, order)


@pytest.mark.parametrize(
    "event",
    [
        gaussian(0.0123456789, 1.23456789, 40),
        EpochGaussian(noise_multiplier=7.654321987, epochs=3),
        FixedSizeGaussianSteps(examples=999, batch_size=10, noise_multiplier=5.4321987, steps=20),
        SkellamSteps(
            sampling_rate=0.0123456,
            steps=9,
            l2=1234.56789,
            l1=34567.89123,
            variance=4567891.23456,
            beta=2.0**-40,
        ),
        gaussian(0.99999, 1e5 / 3),
        gaussian(1e-9, 1e-200),
    ],
)
def test_terms_are_rounded_against_whoever_chose_them(event: Event) -> None:
    coarse = rounded(event)
    assert rounded(coarse) == coarse
    assert epsilon([event], DELTA) <= epsilon([coarse], DELTA)
    if math.isfinite(epsilon([event], DELTA)):
        assert epsilon([coarse], DELTA) <= 1.002 * epsilon([event], DELTA)
