"""Distributed Skellam noise: its exact law, its sum, what one example changes, and that sums do not wrap."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ive

from fedblocks.errors import InputError, PrivacyError
from fedblocks.privacy.events import SkellamSteps
from fedblocks.privacy.mechanisms.skellam import BETA, SkellamNoise, default_scale
from fedblocks.privacy.mechanisms.skellam_sampler import SkellamSampler
from fedblocks.privacy.randomness import Randomness
from fedblocks.privacy.rdp import ORDERS, rdp_of


def draws(variance: float, n: int, *labels: str | int) -> NDArray[np.int64]:
    return SkellamSampler(variance).sample(n, Randomness.from_seed(1, *labels))


def chi_square(x: NDArray[np.int64], variance: float, cells: int = 60) -> float:
    """p-value of x against scipy's Skellam law, integer by integer or in bins of equal width."""
    width = max(1, round(8 * math.sqrt(variance) / cells))
    reach = width * (cells // 2)
    edges = np.arange(-reach, reach + 1, width)  # bin i is [edges[i], edges[i+1])
    law = stats.skellam(variance / 2, variance / 2)
    inner = np.array([law.pmf(np.arange(a, a + width)).sum() for a in edges[:-1]])
    expected = len(x) * np.r_[law.cdf(-reach - 1), inner, law.sf(reach - 1)]
    counts = np.histogram(x, bins=np.r_[-np.inf, edges - 0.5, np.inf])[0]
    while expected[0] < 10:  # tails join their neighbours
        expected = np.r_[expected[0] + expected[1], expected[2:-2], expected[-2] + expected[-1]]
        counts = np.r_[counts[0] + counts[1], counts[2:-2], counts[-2] + counts[-1]]
    return float(stats.chisquare(counts, expected * len(x) / expected.sum()).pvalue)


@pytest.mark.parametrize("variance", [0.05, 1.0, 7.3, 300.0, 1700.0, 2100.0, 9000.0])
def test_draws_follow_the_exact_law(variance: float) -> None:
    """On both sides of the change from a table of integers to cells of several."""
    assert chi_square(draws(variance, 300_000, str(variance)), variance) > 1e-3


@pytest.mark.parametrize("variance", [2e3, 1e5, 1e9, 1e14])
def test_integers_within_a_cell_are_told_apart(variance: float) -> None:
    """The last bits are uniform, and the law is normal where a Skellam's is: would catch a stepwise density."""
    x = draws(variance, 400_000, "cells", str(variance))
    assert stats.chisquare(np.bincount(x & 7, minlength=8)).pvalue > 1e-3
    assert abs(x.var() / variance - 1) < 4 * math.sqrt(2 / len(x))
    assert abs(x.mean()) < 4 * math.sqrt(variance / len(x))
    if variance >= 1e9:
        assert stats.kstest(x / math.sqrt(variance), "norm").pvalue > 1e-3
    for tail in (3, 4):
        expected = len(x) * stats.norm.sf(tail)
        for count in ((x > tail * math.sqrt(variance)).sum(), (x < -tail * math.sqrt(variance)).sum()):
            assert abs(count - expected) < 5 * math.sqrt(expected)


@pytest.mark.parametrize("variance", [1900.0, 5e3, 1e6])
def test_probabilities_agree_with_bessel_functions(variance: float) -> None:
    sampler = SkellamSampler(variance)
    k = np.unique(np.round(np.linspace(-8, 8, 41) * math.sqrt(variance)))
    ours = sampler._probability(k)
    exact = ive(np.abs(k), variance)
    np.testing.assert_allclose(ours / ours[20], exact / exact[20], rtol=2e-12)


@pytest.mark.parametrize("variance", [0.3, 900.0, 2100.0, 2e4])
def test_cells_and_acceptance_together_are_the_law(variance: float) -> None:
    """Without drawing: chance of a cell by the alias table, of an integer in it, and of its acceptance."""
    sampler = SkellamSampler(variance)
    thresholds, aliases = [int(t) for t in sampler._thresholds], sampler._aliases
    chances = list(thresholds)  # in units of 2^-64
    for bucket, alias in enumerate(aliases):
        chances[alias] += 2**54 - thresholds[bucket]
    assert sum(chances) == 2**64
    assert min(chances) >= 1
    bits = sampler._cell_bits
    k = np.arange(-512 * 2**bits, 512 * 2**bits)
    cell = (k >> bits) + 512
    accepted = np.minimum(sampler._probability(k.astype(np.float64)) * sampler._inverse[cell], 1)
    law = np.array(chances, dtype=np.float64)[cell] * accepted
    exact = ive(np.abs(k), variance)
    seen = exact > 1e-16
    np.testing.assert_allclose(law[seen] / law.sum(), exact[seen] / exact.sum(), rtol=2e-12)
    assert law.sum() / 2.0 ** (64 + bits) > 0.97  # few are drawn again


def test_acceptance_never_passes_one() -> None:
    """Would catch a cell whose largest probability is not where it is taken: the law would be cut off there."""
    for variance in (3.0, 2e3, 1e7, 1e13):
        sampler = SkellamSampler(variance)
        bits = sampler._cell_bits
        for cell in (0, 100, 500, 511, 512, 513, 530, 800, 1023):
            k = (cell - 512) * 2**bits + np.unique(np.linspace(0, 2**bits - 1, 50).round())
            assert np.all(sampler._probability(k) * sampler._inverse[cell] <= 1 + 1e-12)
        assert sampler._accepted[512 - 5 : 512 + 5].min() > 0.99


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan, math.inf, 1e30])
def test_impossible_variances_are_refused(variance: float) -> None:
    with pytest.raises(InputError, match="variance"):
        SkellamSampler(variance)


def noise(**changes: float) -> SkellamNoise:
    settings = {
        "dimension": 1000, "clip": 1.0, "companies": 5, "tolerated": 1, "noise_multiplier": 1.0,
        "scale": 2.0**15,
    }  # fmt: skip
    return SkellamNoise(**(settings | changes))  # type: ignore[arg-type]


def total(codec: SkellamNoise, vectors: list[NDArray[np.float64]], *labels: str | int) -> NDArray[np.float64]:
    residues = np.zeros(codec.dimension, dtype=np.uint32)
    for company, vector in enumerate(vectors):
        residues += codec.encode(vector, Randomness.from_seed(2, company, *labels))
    return codec.decode_sum(residues & np.uint32(2**codec.bits - 1))


def test_the_sum_of_shares_is_skellam_of_the_total_variance() -> None:
    """Four honest companies of five have variance_total together; all five a quarter more."""
    codec = noise(dimension=200_000, scale=1.0, noise_multiplier=0.01)
    assert codec.variance_total == pytest.approx((0.01 * codec.l2) ** 2)
    assert codec.variance_share == pytest.approx(codec.variance_total / 4)
    for companies in (4, 5):
        x = total(codec, [np.zeros(codec.dimension)] * companies, "sum").astype(np.int64)
        assert chi_square(x, companies * codec.variance_share) > 1e-3


def test_companies_noise_is_independent() -> None:
    codec = noise(dimension=200_000)
    shares = [
        codec.decode_sum(codec.encode(np.zeros(codec.dimension), Randomness.from_seed(3, c)))
        for c in range(3)
    ]
    correlations = np.corrcoef(shares)[np.triu_indices(3, 1)]
    assert np.all(np.abs(correlations) < 4 / math.sqrt(codec.dimension))


def test_a_decoded_sum_is_unbiased_with_the_stated_noise() -> None:
    codec = noise(dimension=100_000, noise_multiplier=0.3)
    vectors = [np.random.default_rng(c).normal(0, 0.01, codec.dimension) for c in range(5)]
    error = total(codec, vectors, "error") - np.sum(vectors, axis=0)
    deviation = math.sqrt(5 * codec.variance_share) / codec.scale
    assert abs(error.mean()) < 4 * deviation / math.sqrt(codec.dimension)
    assert error.std() == pytest.approx(deviation, rel=0.02)
    assert deviation == pytest.approx(0.3 * math.sqrt(5 / 4) * codec.l2 / codec.scale)


@pytest.mark.parametrize(("dimension", "scale"), [(3, 2.0), (200, 4.0), (5000, 64.0), (5000, 0.5)])
def test_one_example_changes_the_integers_by_at_most_the_stated_norms(dimension: int, scale: float) -> None:
    """Neighbours under the same stream differ by floor(sv + U) - floor(sv' + U): noise and U cancel."""
    codec = noise(dimension=dimension, scale=scale)
    draw = np.random.default_rng(0)
    squares, means = [], []
    for trial in range(60):
        example = draw.normal(size=dimension) * draw.exponential(size=dimension)
        example /= np.linalg.norm(example)
        others = draw.normal(0, 1, dimension)
        with_one, without = (
            codec.encode(v, Randomness.from_seed(4, trial)).astype(np.int64)
            for v in (others + example, others)
        )
        change = (with_one - without + 2**31) % 2**32 - 2**31
        assert np.all(np.abs(change - scale * example) < 1)
        assert np.linalg.norm(change) <= codec.l2
        assert np.abs(change).sum() <= codec.l1
        fraction = scale * example - np.floor(scale * example)
        squares.append((change**2).sum())
        means.append(scale**2 + (fraction * (1 - fraction)).sum())
    assert np.mean(squares) == pytest.approx(np.mean(means), rel=0.1)


def test_the_tighter_sensitivity_is_taken() -> None:
    assert noise(dimension=2**20).l2 < 2**15 * 1.0003
    assert noise(dimension=1, scale=1.0).l2 == 2.0
    for d in (1, 1000, 10**6, 10**8):
        for clip in (1e-3, 0.7, 1.0, 5.0):
            scale = default_scale(d, clip)
            assert noise(dimension=d, clip=clip, scale=scale, companies=2).l2 < 1.001 * scale * clip


def rdp(codec: SkellamNoise, order: int) -> float:
    """What the accountant holds one step on all examples for."""
    step = SkellamSteps(
        sampling_rate=1.0, steps=1, l2=codec.l2, l1=codec.l1, variance=codec.variance_total, beta=BETA
    )
    return float(rdp_of(step)[ORDERS.index(order)])


@pytest.mark.parametrize(("shift", "variance"), [(1, 0.8), (1, 10.0), (3, 12.0), (5, 200.0)])
def test_rdp_bounds_the_exact_divergence(shift: int, variance: float) -> None:
    """One dimension, summed over integers: would catch a swapped variance or sensitivity."""
    codec = noise(
        dimension=1, clip=float(shift), scale=1.0, noise_multiplier=math.sqrt(variance) / (shift + 1)
    )
    assert codec.variance_total == pytest.approx(variance)
    k = np.arange(-400, 400)
    log_p, log_q = (stats.skellam.logpmf(k - s, variance / 2, variance / 2) for s in (shift, 0))
    inside = np.isfinite(log_p) & np.isfinite(log_q)
    for order in (2, 3, 8):
        terms = order * log_p[inside] - (order - 1) * log_q[inside]
        exact = np.logaddexp.reduce(terms) / (order - 1)
        assert exact <= rdp(codec, order)
        assert rdp(codec, order) >= order * codec.l2**2 / (2 * variance)


def test_at_usual_sizes_the_cost_is_the_gaussians() -> None:
    codec = noise(dimension=10**6, noise_multiplier=1.3)
    assert rdp(codec, 10) == pytest.approx(10 / (2 * 1.3**2), rel=1e-6)


@pytest.mark.parametrize("bits", [16, 20, 32])
def test_everybody_at_the_limit_does_not_wrap(bits: int) -> None:
    codec = noise(bits=bits, scale=2.0 ** (bits - 8), dimension=4000)
    for sign in (-1.0, 1.0):
        vectors = [np.full(codec.dimension, sign * 1e9)] * 5  # held at the limit
        decoded = total(codec, vectors, "limit") - sign * 5 * codec.limit
        assert np.abs(decoded).max() < 6 * math.sqrt(5 * codec.variance_share) / codec.scale


def test_a_range_that_could_wrap_is_refused() -> None:
    noise(bits=24, dimension=10**6)
    for changes in ({"bits": 18}, {"bits": 24, "companies": 300}, {"bits": 20, "noise_multiplier": 30.0}):
        with pytest.raises(InputError, match="bits"):
            noise(dimension=10**6, **changes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dimension", 0), ("clip", 0.0), ("clip", math.nan), ("noise_multiplier", 0.0), ("scale", 3.0),
        ("scale", math.inf), ("companies", 0), ("tolerated", 5), ("tolerated", -1), ("bits", 33), ("bits", 1),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=field):
        noise(**{field: value})


def test_wrong_vectors_are_refused() -> None:
    codec, randomness = noise(dimension=3), Randomness.from_seed(0)
    for vector in (np.zeros(4), np.zeros((3, 1)), np.zeros(3, dtype=np.float32), [0.0, 0.0, 0.0]):
        with pytest.raises(InputError, match="vector"):
            codec.encode(vector, randomness)  # type: ignore[arg-type]
    for bad in (math.nan, math.inf):
        with pytest.raises(PrivacyError, match="finite"):
            codec.encode(np.array([0.0, bad, 0.0]), randomness)
    with pytest.raises(InputError, match="residues"):
        noise(dimension=3, bits=24).decode_sum(np.full(3, 2**24, dtype=np.uint32))
