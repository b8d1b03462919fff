"""Trade-off functions against closed forms and dp-accounting, and the ceilings that follow from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from fedblocks.errors import InputError
from fedblocks.privacy.accounting import epsilon
from fedblocks.privacy.events import (
    EpochGaussian,
    GaussianSteps,
    SharedSkellamSteps,
    TruncatedGaussianSteps,
)
from fedblocks.threat_model.ceilings import auc_ceiling, ceiling
from fedblocks.threat_model.intervals import proportion
from fedblocks.threat_model.tradeoff import (
    AccountedTradeOff,
    Claim,
    GaussianTradeOff,
    gaussian_epsilon,
    gaussian_mu,
    mu_of,
    tradeoff,
    with_noise,
    without_sampling,
)

SAMPLED = GaussianSteps(sampling_rate=0.1, noise_multiplier=1.2, steps=20)
SHARED = SharedSkellamSteps(
    sampling_rate=1.0, steps=1, l2=3.3e4, l1=1.3e7, variance=(3.3e4 * 0.75) ** 2, beta=2.0**-40, shares=4, colluders=0
)  # fmt: skip


@pytest.mark.parametrize(("mu", "delta"), [(0.3, 1e-5), (1.0, 1e-5), (1.8, 1e-6), (8.0, 1e-5)])
def test_the_epsilon_of_a_gaussian_release_is_the_accountants(mu: float, delta: float) -> None:
    """Oracle: privacy loss distributions. Would catch a wrong sign in the closed form, and an overflow."""
    release = GaussianSteps(sampling_rate=1.0, noise_multiplier=1 / mu, steps=1)
    assert gaussian_epsilon(mu, delta) == pytest.approx(epsilon([release], delta), rel=2e-3)
    assert gaussian_mu(gaussian_epsilon(mu, delta), delta) == pytest.approx(mu, rel=1e-6)


@given(st.floats(0.05, 6), st.floats(1e-6, 1 - 1e-6))
def test_hits_and_alarms_are_each_others_inverse(mu: float, x: float) -> None:
    """Would catch an inverse with the wrong sign, on which the certificate rests."""
    f = GaussianTradeOff(mu)
    assert f.hits(x) == pytest.approx(float(norm.cdf(norm.ppf(x) + mu)), rel=1e-9)
    if f.hits(x) < 1 - 1e-9:
        assert f.alarms(f.hits(x)) == pytest.approx(x, rel=1e-4)


@pytest.mark.parametrize("mu", [0.3, 1.0, 1.8])
def test_pairs_of_epsilon_and_delta_bound_a_gaussian_from_the_safe_side(mu: float) -> None:
    """Would catch a line that cuts the curve (a claim too strong, refuted falsely) and pairs that lose much."""
    deltas = np.logspace(-9, math.log10(0.999), 160)
    found = AccountedTradeOff(tuple((gaussian_epsilon(mu, float(d)), float(d)) for d in deltas))
    exact = GaussianTradeOff(mu)
    for x in np.concatenate([np.logspace(-8, -1, 30), np.linspace(0.1, 0.99, 30)]):
        assert exact.hits(x) - 1e-12 <= found.hits(x) <= exact.hits(x) * 1.02
        assert found.alarms(x) <= exact.alarms(x) + 1e-12
        assert found.hits(found.alarms(x)) <= x + 1e-9


def test_the_trade_off_of_sampled_steps_is_that_of_the_library() -> None:
    """Oracle: dp-accounting's delta at every epsilon, both ways. Would catch a curve below it anywhere."""
    f = tradeoff(SAMPLED)
    library = privacy_loss_distribution.from_gaussian_mechanism(
        1.2, sampling_prob=0.1, value_discretization_interval=1e-3
    ).self_compose(20)
    slopes = np.linspace(-6, 6, 400)
    deltas = np.array([library.get_delta_for_epsilon(float(e)) for e in slopes])
    for x in np.logspace(-6, -0.01, 40):
        best = min(1.0, float((deltas + np.exp(slopes) * x).min()))
        assert best * 0.999 <= f.hits(x) <= best * 1.02


def test_noise_in_whole_numbers_claims_no_more_than_its_renyi_account() -> None:
    """Would catch a Gaussian curve in place of what is proven, which is larger."""
    f, gaussian = tradeoff(SHARED), GaussianTradeOff(1 / 0.75)
    for x in (1e-4, 0.01, 0.3):
        assert gaussian.hits(x) < f.hits(x) < 1
    assert epsilon([SHARED], 1e-5) == pytest.approx(Claim(SHARED, 1e-5).epsilon())
    assert Claim(SHARED, 1e-5).epsilon(2.0) < Claim(SHARED, 1e-5).epsilon() < Claim(SHARED, 1e-5).epsilon(0.5)


def test_an_account_that_knows_nothing_claims_nothing() -> None:
    """Would catch a claim made of infinities, refuted by anything."""
    f = tradeoff(GaussianSteps(sampling_rate=0.5, noise_multiplier=1e-3, steps=1))
    assert f.hits(0.0) == 1.0
    assert f.alarms(1.0) == 0.0


def test_somebody_who_knows_of_the_part_taken_gains_nothing_from_sampling() -> None:
    """Would catch amplification left in the local claim, and a cap that counts for it."""
    capped = TruncatedGaussianSteps(
        sampling_rate=0.1, noise_multiplier=1.2, steps=4, examples=100, batch_cap=30
    )
    for event in (capped, SAMPLED):
        assert mu_of(without_sampling(event)) == pytest.approx(math.sqrt(event.steps) / 1.2)
        assert mu_of(event) is None
    epochs = EpochGaussian(noise_multiplier=2.0, epochs=9)
    assert mu_of(without_sampling(epochs)) == pytest.approx(1.5)
    assert mu_of(with_noise(epochs, 2.0)) == pytest.approx(0.75)
    assert without_sampling(SHARED) == SHARED


@pytest.mark.parametrize(("at", "most"), [(1.0, 0.020), (3.0, 0.054), (8.0, 0.255)])
def test_a_guess_that_is_right_in_1_percent_blindly(at: float, most: float) -> None:
    """The known figures of one Gaussian release; would catch exp(epsilon) k + delta in their place."""
    promised = GaussianTradeOff(gaussian_mu(at, 1e-5))
    assert ceiling(promised, 0.01) == pytest.approx(most, abs=5e-4)
    assert ceiling(promised, proportion(0, 368)) == pytest.approx(most, rel=0.02)  # at most 1%


@pytest.mark.parametrize("mu", [0.2, 1.0, 2.5])
def test_the_area_under_the_curve_of_a_gaussian(mu: float) -> None:
    """Closed form; would catch an integral from below, which an attack could pass."""
    exact = float(norm.cdf(mu / math.sqrt(2)))
    assert exact <= auc_ceiling(GaussianTradeOff(mu)) <= exact + 1e-4


@pytest.mark.parametrize("blind", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(blind: float) -> None:
    with pytest.raises(InputError, match="blind"):
        ceiling(GaussianTradeOff(1.0), blind)
