"""The bound on epsilon against a linear program, mechanisms that keep their claim, and planted faults."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import linprog
from scipy.stats import binomtest, norm

from fedblocks.errors import InputError
from fedblocks.privacy import dp_sgd
from fedblocks.privacy.clipping import ClippedSum
from fedblocks.privacy.dp_sgd import DPSGD
from fedblocks.privacy.events import GaussianSteps
from fedblocks.privacy.mechanisms.gaussian import add_gaussian_noise
from fedblocks.privacy.mechanisms.skellam import SkellamNoise, default_scale
from fedblocks.privacy.quantile_clip import QuantileClip
from fedblocks.privacy.randomness import Randomness
from fedblocks.privacy.sampling import EpochSampling, PoissonSampling
from fedblocks.privacy.secure_step import SecureStep
from fedblocks.threat_model.epsilon.canaries import Canaries, release
from fedblocks.threat_model.epsilon.certificate import (
    Certificate,
    Registered,
    ScoreLaw,
    one_run,
    refutes,
    register,
    register_threshold,
    repeated,
)
from fedblocks.threat_model.epsilon.estimate import epsilon_estimate, gaussian_mu_estimate
from fedblocks.threat_model.epsilon.simulated import independent, one_latent
from fedblocks.threat_model.tradeoff import (
    AccountedTradeOff,
    Claim,
    GaussianTradeOff,
    gaussian_epsilon,
    gaussian_mu,
)

DELTA = 1e-5
STEP = DPSGD(
    sampling=PoissonSampling(0.2), noise_multiplier=0.8, max_grad_norm=2.0, expected_batch_size=50.0,
    learning_rate=0.5, steps=1, noise_draws=3,
)  # fmt: skip


def gaussian_claim(noise: float, steps: int = 1) -> Claim:
    return Claim(GaussianSteps(sampling_rate=1.0, noise_multiplier=noise, steps=steps), DELTA)


def largest_tail(claim: AccountedTradeOff, right: int, guesses: int, canaries: int) -> float:
    """The largest chance of at least `right` right guesses that the theorem's inequalities allow."""
    counts = np.arange(guesses + 1)
    rows, bounds = [], []
    for i in range(1, guesses + 1):
        r = np.where(counts >= i, counts, 0) / canaries
        h = np.where(counts >= i - 1, guesses - counts, 0) / canaries
        for slope, offset in zip(*claim._lines, strict=True):
            rows.append(r - slope * h)
            bounds.append(offset)
    found = linprog(
        -(counts >= right).astype(float), A_ub=np.array(rows), b_ub=bounds, A_eq=np.ones((1, guesses + 1)), b_eq=[1.0]
    )  # fmt: skip
    return float(-found.fun)


@pytest.mark.parametrize(
    ("canaries", "guesses", "right"), [(20, 20, 16), (20, 20, 20), (30, 12, 11), (40, 20, 18)]
)
def test_the_bound_is_the_optimum_of_the_linear_program(canaries: int, guesses: int, right: int) -> None:
    """Oracle: an exact solver on the theorem itself. Would catch any slip in the recursion, in either direction."""
    pairs = tuple((gaussian_epsilon(1.0, float(d)), float(d)) for d in np.logspace(-8, -0.2, 40))
    claim = AccountedTradeOff(pairs)
    tail = largest_tail(claim, right, guesses, canaries)
    assert 0 < tail < 1
    assert refutes(claim, right, guesses, canaries, 1.001 * tail)
    assert not refutes(claim, right, guesses, canaries, 0.999 * tail)


@pytest.mark.parametrize("mu", [0.5, 1.8])
@pytest.mark.parametrize("mechanism", [independent, one_latent])
def test_a_true_claim_is_not_refuted_whatever_canaries_share(mu: float, mechanism: object) -> None:
    """Two mechanisms that are exactly mu-GDP. Would catch a test that takes canaries for independent (32 to 54%)."""
    assert callable(mechanism)
    draw, m = np.random.default_rng(0), 1000
    claim = GaussianTradeOff(mu)
    registered = register(claim, ScoreLaw(1 / mu), m, 0.05)
    refuted = 0
    for _ in range(200):
        inside = draw.random(m) < 0.5
        scores = mechanism(inside, mu, draw)
        refuted += refutes(claim, registered.right(scores, inside), registered.guesses, m, 0.05)
    assert refuted <= 10


@pytest.mark.parametrize("mechanism", [independent, one_latent])
def test_both_mechanisms_are_what_they_are_said_to_be(mechanism: object) -> None:
    """Would catch a simulated mechanism that keeps more than its claim, which proves nothing."""
    assert callable(mechanism)
    draw = np.random.default_rng(1)
    inside = np.arange(2000) % 2 == 0
    scores = np.stack([mechanism(inside, 1.5, draw) for _ in range(400)])
    hits, alarms = (scores[:, inside] > 0.75).mean(), (scores[:, ~inside] > 0.75).mean()
    assert hits == pytest.approx(GaussianTradeOff(1.5).hits(float(alarms)), abs=0.02)


def certified(noise: float, claim: Claim, m: int, draw: np.random.Generator) -> Certificate:
    registered = register(claim.tradeoff(), ScoreLaw(0.6), m, 0.05)
    inside = draw.random(m) < 0.5
    return one_run(claim, registered, registered.right(ScoreLaw(noise).draw(inside, draw), inside), 0.05)


def test_at_epsilon_8_with_10_000_canaries_the_bound_is_above_4_5() -> None:
    """Would catch a bound that holds and says little."""
    noise = 1 / gaussian_mu(8.0, DELTA)
    claim, draw = gaussian_claim(noise), np.random.default_rng(2)
    found = [certified(noise, claim, 10_000, draw) for _ in range(5)]
    assert np.mean([each.epsilon for each in found]) >= 4.5
    assert not any(each.refuted for each in found)
    assert all(certified(0.5 * noise, claim, 10_000, draw).refuted for _ in range(3))


def test_noise_alone_shows_nothing() -> None:
    """Would catch the best threshold of the observed scores, which claims something in a third of all null runs."""
    claim, draw, m = gaussian_claim(0.6), np.random.default_rng(3), 1000
    registered = register(claim.tradeoff(), ScoreLaw(0.6), m, 0.05)
    claims = 0
    for _ in range(100):
        inside = draw.random(m) < 0.5
        found = one_run(claim, registered, registered.right(draw.standard_normal(m), inside), 0.05)
        claims += found.epsilon > 0
    assert claims <= 5


def test_independent_releases_hold_a_true_claim_and_refute_a_false_one() -> None:
    """Would catch one-sided limits swapped, and a threshold that no canary passes."""
    noise, n = 0.6, 400
    claim, law, draw = gaussian_claim(noise), ScoreLaw(noise), np.random.default_rng(4)
    threshold = register_threshold(claim.tradeoff(), law, n, 0.05)
    assert threshold < 1

    def audit(scale: float) -> Certificate:
        inside = draw.random(n) < 0.5
        passed = law.with_noise(scale).draw(inside, draw) > threshold
        return repeated(
            claim, passed[inside].sum(), inside.sum(), passed[~inside].sum(), (~inside).sum(), 0.05
        )

    sound = [audit(1.0) for _ in range(100)]
    assert sum(each.refuted for each in sound) <= 5
    assert np.mean([each.epsilon for each in sound]) > 0.5 * claim.epsilon()
    assert all(audit(0.5).refuted for _ in range(10))


def test_the_rates_of_independent_releases_have_their_exact_limits() -> None:
    """Oracle: scipy's own intervals. Would catch the whole level spent on each of the two rates."""
    members, others, hits, alarms = 200, 190, 120, 6
    low = binomtest(hits, members).proportion_ci(0.95, method="exact").low  # 2.5% below
    high = binomtest(alarms, others).proportion_ci(0.95, method="exact").high
    found = repeated(gaussian_claim(0.6), hits, members, alarms, others, 0.05)
    assert found.epsilon == pytest.approx(gaussian_epsilon(norm.ppf(low) - norm.ppf(high), DELTA), rel=0.02)


def test_what_was_not_registered_is_refused() -> None:
    """Would catch NaN ranked as the highest score, and scores of other canaries."""
    registered = Registered(canaries=10, highest=2, lowest=2)
    inside = np.ones(10, dtype=np.bool_)
    with pytest.raises(InputError, match="scores"):
        registered.right(np.full(10, np.nan), inside)
    with pytest.raises(InputError, match="scores"):
        registered.right(np.zeros(9), inside)
    with pytest.raises(InputError, match="right"):
        refutes(GaussianTradeOff(1.0), 5, 4, 10, 0.05)


# The run's own mechanisms.
SIZE, COUNT = 4000, 1000


def scores_of(
    mechanism: DPSGD | SecureStep, inside: npt.NDArray[np.bool_], seed: int = 0, **options: object
) -> npt.NDArray[np.float64]:
    canaries = Canaries(SIZE, len(inside), 1)
    own, others = Randomness.from_seed(seed, "own"), Randomness.from_seed(seed, "others")
    return canaries.scores(release(mechanism, canaries, inside, own, others, **options))  # type: ignore[arg-type]


def coins(seed: int, n: int = COUNT) -> npt.NDArray[np.bool_]:
    return Randomness.from_seed(seed, "coins").bernoulli(n, 0.5)


def secure(companies: int = 5, tolerated: int = 1) -> SecureStep:
    noise = SkellamNoise(
        dimension=SIZE, clip=2.0, companies=companies, tolerated=tolerated, noise_multiplier=0.8,
        scale=default_scale(SIZE, 2.0),
    )  # fmt: skip
    return SecureStep(sampling_rate=0.2, noise=noise, colluders=0, largest_sum=1e3, noise_draws=3)


QUANTILE = QuantileClip.beside(0.5, 0.8, 1000.0)
MECHANISMS: dict[str, tuple[DPSGD | SecureStep, float]] = {
    "Poisson": (STEP, 1.0),
    "capped": (replace(STEP, sampling=PoissonSampling(0.2, batch_cap=20)), 1.0),
    "local steps": (replace(STEP, steps=3), 3.0),
    "epochs": (replace(STEP, sampling=EpochSampling(4), steps=8), 2.0),
    "correlated noise": (
        replace(STEP, sampling=EpochSampling(4, regroup=False), steps=8, noise_bands=3), 2.0,
    ),
    "per layer": (replace(STEP, clipping="per-layer"), 1.0),
    "automatic": (replace(STEP, clipping="automatic"), 1.0),
    "shares": (secure(), 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", MECHANISMS)
def test_without_noise_a_canary_scores_its_clip(name: str) -> None:
    """Would catch canaries that are shorter than the clip or not orthogonal, and a step that leaves some out."""
    mechanism, times = MECHANISMS[name]
    inside = coins(1)
    scores = scores_of(mechanism, inside, noise=0.0)
    assert scores[inside] == pytest.approx(times, rel=0.01, abs=0.02)
    assert scores[~inside] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("name", ["Poisson", "local steps", "shares"])
def test_scores_have_the_noise_of_the_mechanism(name: str) -> None:
    """Would catch shares of other companies left out, and noise in other units than the clip's."""
    mechanism, times = MECHANISMS[name]
    inside = coins(2)
    noise = scores_of(mechanism, inside) - scores_of(mechanism, inside, noise=0.0)
    assert noise.std() == pytest.approx(0.8 * math.sqrt(times), rel=0.1)


def test_sampled_canaries_join_as_accounted() -> None:
    """Would catch the claim with amplification tested on steps without it."""
    inside = np.ones(COUNT, dtype=np.bool_)
    for mechanism in (STEP, secure()):
        joined = scores_of(mechanism, inside, sampled=True, noise=0.0) > 0.5
        assert joined.mean() == pytest.approx(0.2, abs=0.05)


def test_a_moving_clip_costs_power_alone() -> None:
    """Would catch a canary that scores more than the clip at the start allows."""
    mechanism = replace(STEP, steps=3, quantile_clip=replace(QUANTILE, largest=2.0))
    inside = coins(3)
    found = scores_of(mechanism, inside, noise=0.0)
    assert 0.5 < found[inside].mean() <= 3.0
    assert found[~inside] == pytest.approx(0, abs=1e-3)


def audited(mechanism: DPSGD, seed: int) -> Certificate:
    claim = gaussian_claim(0.8)
    registered = register(claim.tradeoff(), ScoreLaw(0.8), COUNT, 0.05)
    inside = coins(seed)
    return one_run(claim, registered, registered.right(scores_of(mechanism, inside, seed), inside), 0.05)


def test_a_step_with_too_little_noise_is_refuted_by_its_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault is planted where the step adds its noise. Would catch an audit of a copy of the mechanism."""
    assert not any(audited(STEP, seed).refuted for seed in range(5))

    def less(clipped: ClippedSum, noise_multiplier: float, randomness: Randomness) -> object:
        return add_gaussian_noise(clipped, 0.4 * noise_multiplier, randomness)

    monkeypatch.setattr(dp_sgd, "add_gaussian_noise", less)
    assert all(audited(STEP, seed).refuted for seed in range(5))


def test_more_canaries_than_values_are_refused() -> None:
    with pytest.raises(InputError, match="canaries"):
        Canaries(10, 11)


@pytest.mark.parametrize("mu", [0.0, 0.3, 1.7, 8.0])
def test_the_estimate_covers_what_is_gaussian(mu: float) -> None:
    """Would catch an interval of the means alone, which is too narrow where scores are far apart."""
    draw, covered = np.random.default_rng(5), 0
    for _ in range(200):
        inside = draw.random(200) < 0.5
        scores = inside * mu + draw.standard_normal(200)
        found = gaussian_mu_estimate(scores[inside], scores[~inside])
        covered += found.low <= mu <= found.high
    assert covered >= 180
    near = epsilon_estimate(scores[inside], scores[~inside], DELTA)
    assert near.low <= near.value <= near.high


def test_an_estimate_needs_scores_that_differ() -> None:
    """Would catch an infinite epsilon stored as a figure."""
    with pytest.raises(InputError, match="differ"):
        gaussian_mu_estimate(np.ones(30), np.zeros(30))
    with pytest.raises(InputError, match="at least 20"):
        gaussian_mu_estimate(np.arange(5.0), np.arange(30.0))
