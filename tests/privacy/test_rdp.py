"""Accounts beyond Poisson Gaussian steps: against the library, closed forms, and numbers from first principles."""

import itertools
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation
from dp_accounting.rdp import RdpAccountant
from numpy.typing import NDArray
from opacus.accountants import RDPAccountant as OpacusRDP
from scipy.special import ive

from fedblocks.errors import InputError
from fedblocks.privacy.accounting import (
    accountant_of,
    at,
    calibrate,
    epsilon,
    guarantee,
    releases_within,
    round_up,
)
from fedblocks.privacy.events import (
    EpochGaussian,
    Event,
    FixedSizeGaussianSteps,
    GaussianSteps,
    SkellamSteps,
    TruncatedGaussianSteps,
)
from fedblocks.privacy.rdp import ORDERS, rdp_epsilon, rdp_of

DELTA = 1e-5
WHOLE = np.asarray([order == int(order) for order in ORDERS])


def gaussian(rate: float, noise: float, steps: int) -> GaussianSteps:
    return GaussianSteps(sampling_rate=rate, noise_multiplier=noise, steps=steps)


def capped(cap: int, *, steps: int = 1000, examples: int = 10_000) -> TruncatedGaussianSteps:
    return TruncatedGaussianSteps(
        sampling_rate=0.01, noise_multiplier=1.0, steps=steps, examples=examples, batch_cap=cap
    )


def fixed(batch: int, noise: float, steps: int, examples: int = 10_000) -> FixedSizeGaussianSteps:
    return FixedSizeGaussianSteps(examples=examples, batch_size=batch, noise_multiplier=noise, steps=steps)


def skellam(rate: float, noise: float, steps: int, l2: float = 2.0**15, l1: float = 2.0**20) -> SkellamSteps:
    return SkellamSteps(
        sampling_rate=rate, steps=steps, l2=l2, l1=l1, variance=(noise * l2) ** 2, beta=2.0**-40
    )


# --- capped batches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cap", "expected"), [(150, 1.831), (128, 4.01)])
def test_capped_batches_known_values(cap: int, expected: float) -> None:
    assert epsilon([capped(cap)], DELTA) == pytest.approx(expected, abs=5e-3)


def test_a_cap_costs_more_the_lower_it_is() -> None:
    costs = [epsilon([capped(cap)], DELTA) for cap in (10_001, 200, 150, 140, 128, 100)]
    assert all(low <= high * (1 + 1e-3) for low, high in itertools.pairwise(costs))
    free = epsilon([gaussian(0.01, 1.0, 1000)], DELTA)
    assert costs[0] == free
    assert costs[1] == pytest.approx(free, rel=1e-3)


def test_a_cap_covers_neighbours_of_one_example_more_and_one_less() -> None:
    """On few examples, where one makes a difference: the pair of 12 and 13 is the worse one for 12 in hand."""
    event = TruncatedGaussianSteps(
        sampling_rate=0.4, noise_multiplier=3.0, steps=20, examples=12, batch_cap=5
    )
    pairs = []
    for larger in (12, 13):
        step = privacy_loss_distribution.from_truncated_subsampled_gaussian_mechanism(
            dataset_size=larger, sampling_probability=0.4, truncated_batch_size=5, noise_multiplier=3.0
        )
        pairs.append(step.self_compose(20).get_epsilon_for_delta(DELTA))
    assert pairs[0] * 1.02 < pairs[1]
    assert epsilon([event], DELTA) == pytest.approx(pairs[1], rel=2e-3)


def test_capped_batches_compose_with_others_as_in_the_library() -> None:
    events = [
        capped(130, steps=300),
        gaussian(0.05, 2.0, 100),
        EpochGaussian(noise_multiplier=20.0, epochs=4),
    ]
    accountant = PLDAccountant()
    for each in events:
        accountant.compose(each.dp_event())
    assert epsilon(events, DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=5e-3)


# --- epochs ---------------------------------------------------------------------------------------------------


def test_an_epoch_is_one_gaussian_release() -> None:
    for noise, epochs in ((4.0, 5), (1.0, 1), (20.0, 300)):
        shuffled = EpochGaussian(noise_multiplier=noise, epochs=epochs)
        assert epsilon([shuffled], DELTA) == epsilon([gaussian(1.0, noise, epochs)], DELTA)
        np.testing.assert_allclose(rdp_of(shuffled.step), rdp_of(gaussian(1.0, noise, 1)), rtol=1e-12)


def test_epochs_claim_no_amplification() -> None:
    shuffled = EpochGaussian(noise_multiplier=1.0, epochs=10)
    assert epsilon([shuffled], DELTA) > 3 * epsilon([gaussian(0.01, 1.0, 1000)], DELTA)


# --- fixed size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "noise", "steps"), [(100, 2.0, 500), (1000, 4.0, 100), (10_000, 5.0, 3)])
def test_fixed_size_is_the_library_account(batch: int, noise: float, steps: int) -> None:
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    accountant.compose(fixed(batch, noise, steps).dp_event())
    ours = epsilon([fixed(batch, noise, steps)], DELTA)
    assert ours == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-6)
    assert ours >= accountant.get_epsilon(DELTA)


@pytest.mark.parametrize(("batch", "noise", "steps"), [(100, 1.0, 1000), (100, 4.0, 1000), (5000, 6.0, 50)])
def test_fixed_size_is_above_an_exact_pair_of_neighbours(batch: int, noise: float, steps: int) -> None:
    # All examples without a gradient but one, which pulls by C one way or the other: replacing moves by 2 C.
    step = privacy_loss_distribution.from_gaussian_mechanism(
        noise,
        sampling_prob=batch / 10_000,
        neighboring_relation=NeighboringRelation.REPLACE_ONE,
        pessimistic_estimate=False,
        use_connect_dots=False,
        value_discretization_interval=1e-3,
    )
    exact = step.self_compose(steps).get_epsilon_for_delta(DELTA)
    assert exact <= epsilon([fixed(batch, noise, steps)], DELTA)


def test_fixed_size_of_all_examples_is_a_gaussian_of_twice_the_sensitivity() -> None:
    np.testing.assert_allclose(rdp_of(fixed(10_000, 5.0, 1)), np.asarray(ORDERS) / (2 * 2.5**2), rtol=1e-9)


# --- Gaussian steps by RDP ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.3, 1.0])
@pytest.mark.parametrize(("noise", "steps"), [(0.8, 100), (2.0, 1000)])
def test_rdp_of_gaussian_steps_is_opacus_rdp(rate: float, noise: float, steps: int) -> None:
    opacus = OpacusRDP()
    opacus.history = [(noise, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        independent = opacus.get_privacy_spent(delta=DELTA, alphas=list(ORDERS))[0]
    ours = rdp_epsilon([gaussian(rate, noise, steps)], DELTA)
    # Where the library gives up on a fractional order, the chord between whole ones costs a little.
    assert independent * (1 - 1e-6) <= ours <= independent * 1.04
    assert epsilon([gaussian(rate, noise, steps)], DELTA) <= ours


# --- Skellam --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [1.0, 4.0, 20.0])
def test_skellam_of_large_variance_is_gaussian(noise: float) -> None:
    np.testing.assert_allclose(
        rdp_of(skellam(1.0, noise, 1))[WHOLE], rdp_of(gaussian(1.0, noise, 1))[WHOLE], rtol=1e-3
    )


def test_skellam_epsilon_without_sampling_is_the_gaussian_one() -> None:
    for noise, steps in ((4.0, 1), (20.0, 50), (5.0, 1)):
        by_rdp = rdp_epsilon([gaussian(1.0, noise, steps)], DELTA)
        assert epsilon([skellam(1.0, noise, steps)], DELTA) == pytest.approx(by_rdp, rel=1e-3)


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.01, 1.0, 1000), (0.1, 4.0, 500), (0.5, 6.0, 120)])
def test_amplification_against_that_of_the_gaussian(rate: float, noise: float, steps: int) -> None:
    general, tight = rdp_of(skellam(rate, noise, 1)), rdp_of(gaussian(rate, noise, 1))
    assert (general[WHOLE] >= tight[WHOLE] * (1 - 1e-9)).all()
    ours, best = (
        epsilon([skellam(rate, noise, steps)], DELTA),
        rdp_epsilon([gaussian(rate, noise, steps)], DELTA),
    )
    assert best * (1 - 1e-6) <= ours <= 1.02 * best


@pytest.mark.parametrize(("rate", "order"), [(0.1, 2), (0.1, 3), (0.02, 7), (0.5, 5)])
def test_amplification_is_the_binomial_sum(rate: float, order: int) -> None:
    """Term by term and without logarithms."""
    event = SkellamSteps(sampling_rate=rate, steps=1, l2=3.0, l1=5.0, variance=50.0, beta=2.0**-40)

    def base(a: int) -> float:
        wide = min(((2 * a - 1) * 9 + 6 * 5) / (4 * 50**2), 3 * 5 / (2 * 50))
        return a * 9 / (2 * 50) + wide

    total = (1 - rate) ** (order - 1) * (order * rate - rate + 1)
    total += math.comb(order, 2) * rate**2 * (1 - rate) ** (order - 2) * math.exp(base(2))
    for l in range(3, order + 1):  # noqa: E741, the paper's letter
        chance = math.comb(order, l) * (1 - rate) ** (order - l) * rate**l
        total += chance * math.exp((l - 1) * base(l))
    expected = min(math.log(total) / (order - 1), base(order))
    assert rdp_of(event)[ORDERS.index(order)] == pytest.approx(expected, rel=1e-9)


def masses(variance: float, shift: int, rate: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One value's Skellam noise without and with an example that adds `shift` with probability `rate`."""
    reach = int(12 * math.sqrt(variance)) + 40
    values = np.arange(-reach, reach + shift + 1)
    absent = ive(np.abs(values), variance)  # e^-mu I_k(mu), the Bessel function's own definition of Sk(0, mu)
    present = (1 - rate) * absent + rate * ive(np.abs(values - shift), variance)
    return absent, present


@pytest.mark.parametrize(("shift", "variance"), [(1, 4.0), (3, 30.0), (10, 80.0)])
@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
def test_skellam_bound_holds_for_divergences_summed_by_hand(shift: int, variance: float, rate: float) -> None:
    p, q = masses(variance, shift, rate)
    event = SkellamSteps(sampling_rate=rate, steps=1, l2=shift, l1=shift, variance=variance, beta=2.0**-40)
    kept = (p > 1e-290) & (q > 1e-290)
    log_p, log_q = np.log(p[kept]), np.log(q[kept])
    for order, bound in zip(ORDERS, rdp_of(event), strict=True):
        if order > 20:
            break
        for first, second in ((log_p, log_q), (log_q, log_p)):
            terms = order * first - (order - 1) * second
            exact = math.log(math.fsum(np.exp(terms - terms.max()))) + terms.max()
            assert exact / (order - 1) <= bound * (1 + 1e-9) + 1e-12


def exact_epsilon(p: NDArray[np.float64], q: NDArray[np.float64], steps: int, delta: float) -> float:
    """Composition by hand: losses rounded down onto a grid (a lower bound), convolved, and read off."""
    grid, cells = 2.0**-10, 1 << 17

    def one_way(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
        kept = (first > 1e-30) & (second > 1e-300)
        cell = np.floor(np.log(first[kept] / second[kept]) / grid).astype(int)
        mass = np.bincount(cell % cells, weights=first[kept], minlength=cells)
        total = np.maximum(np.fft.irfft(np.fft.rfft(mass) ** steps, cells), 0.0)
        losses = ((np.arange(cells) + cells // 2) % cells - cells // 2) * grid

        def excess(eps: float) -> float:
            above = losses > eps
            return float(total[above] @ -np.expm1(eps - losses[above]))

        low, high = 0.0, 60.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) > delta else (low, middle)
        return low

    return max(one_way(p, q), one_way(q, p))


@pytest.mark.parametrize(
    ("shift", "variance", "rate", "steps"), [(2, 40.0, 0.05, 100), (4, 64.0, 1.0, 5), (5, 50.0, 0.1, 40)]
)
def test_skellam_epsilon_against_composition_by_hand(
    shift: int, variance: float, rate: float, steps: int
) -> None:
    exact = exact_epsilon(*masses(variance, shift, rate), steps, DELTA)
    event = SkellamSteps(
        sampling_rate=rate, steps=steps, l2=shift, l1=shift, variance=variance, beta=2.0**-40
    )
    assert exact <= epsilon([event], DELTA) <= 2.6 * exact


def test_composition_by_hand_finds_the_gaussian_figure() -> None:
    """The oracle itself: a Gaussian on the same lattice, against the library's figure."""
    values = np.arange(-1500, 1501)
    bell = np.exp(-0.5 * ((values[:, None] - np.array([0, 100])) / 100) ** 2)
    p, other = (bell / bell.sum(0)).T
    found = exact_epsilon(p, 0.99 * p + 0.01 * other, 1000, DELTA)
    assert found == pytest.approx(epsilon([gaussian(0.01, 1.0, 1000)], DELTA), rel=0.4)
    assert found <= epsilon([gaussian(0.01, 1.0, 1000)], DELTA)


def test_more_noise_or_less_sampling_never_costs_more() -> None:
    by_noise = [epsilon([skellam(0.1, z, 50)], DELTA) for z in (0.5, 1.0, 2.0, 8.0)]
    by_rate = [epsilon([skellam(q, 1.0, 50)], DELTA) for q in (0.9999, 0.5, 0.1, 0.01, 1e-4)]
    assert by_noise == sorted(by_noise, reverse=True)
    assert by_rate == sorted(by_rate, reverse=True)
    assert by_rate[0] <= epsilon([skellam(1.0, 1.0, 50)], DELTA)


# --- lists ----------------------------------------------------------------------------------------------------


def test_mixed_lists_use_one_accountant_for_all() -> None:
    mixed = [gaussian(0.01, 1.0, 500), EpochGaussian(noise_multiplier=10.0, epochs=2), skellam(0.1, 2.0, 50)]
    assert accountant_of(mixed[:2]) == "PLD"
    assert accountant_of(mixed) == "RDP"
    assert epsilon(mixed, DELTA) == rdp_epsilon(mixed, DELTA)
    assert epsilon(mixed, DELTA) > max(epsilon([each], DELTA) for each in mixed)
    assert epsilon(mixed, DELTA) == epsilon(reversed(mixed), DELTA)
    assert epsilon([skellam(0.1, 2.0, 20), skellam(0.1, 2.0, 30)], DELTA) == epsilon(mixed[2:], DELTA)
    found = guarantee(mixed, DELTA)
    assert (found.accountant, found.adjacency) == ("RDP", "add or remove one example")
    assert [each.mechanism in found.mechanism for each in mixed] == [True] * 3


def test_lists_that_do_not_compose_are_refused() -> None:
    with pytest.raises(InputError, match="different adjacency"):
        epsilon([gaussian(0.01, 1.0, 1), fixed(100, 2.0, 1)], DELTA)
    with pytest.raises(InputError, match="not known for capped batches"):
        epsilon([capped(150), skellam(0.1, 2.0, 1)], DELTA)
    with pytest.raises(InputError, match=r"^event="):
        epsilon(["gaussian"], DELTA)  # type: ignore[list-item]


def test_what_cannot_be_computed_is_infinite_not_low() -> None:
    assert epsilon([skellam(0.5, 1e-150, 1)], DELTA) > 1e100
    assert epsilon([fixed(100, 1e-200, 1)], DELTA) == math.inf
    # Rounding may not turn a million tiny steps into none.
    assert epsilon([skellam(1e-12, 1.0, 1_000_000)], 1e-9) > 0


KINDS: dict[str, Callable[[float], Event]] = {
    "capped": lambda z: TruncatedGaussianSteps(
        sampling_rate=0.01, noise_multiplier=z, steps=500, examples=10_000, batch_cap=140
    ),
    "epochs": lambda z: EpochGaussian(noise_multiplier=z, epochs=20),
    "fixed": lambda z: fixed(200, z, 200),
    "skellam": lambda z: skellam(0.1, z, 100),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_calibrated(kind: str) -> None:
    noise = calibrate(KINDS[kind], 3.0, at(DELTA))
    event = KINDS[kind](noise)
    assert 0.99 * 3.0 <= epsilon([event], DELTA) <= 3.0
    fits = releases_within(3.0, event.step, at(DELTA))
    assert fits >= event.steps
    assert epsilon([event.step.times(fits)], DELTA) <= 3.0 < epsilon([event.step.times(fits + 1)], DELTA)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (gaussian(0.01, 1.0, 1000), 1.829),
        (capped(150), 1.832),
        (capped(128), 4.015),
        (EpochGaussian(noise_multiplier=1.0, epochs=10), 17.86),
        (fixed(100, 1.0, 1000), 20.99),
        (skellam(0.01, 1.0, 1000), 2.108),
    ],
)
def test_figures_of_the_readme(event: Event, expected: float) -> None:
    assert round_up(epsilon([event], DELTA)) == expected
