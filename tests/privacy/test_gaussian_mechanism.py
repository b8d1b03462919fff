"""The Gaussian mechanism: its law, its grid, and an attack on low-order bits that naive addition falls to."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedblocks.errors import PrivacyError
from fedblocks.privacy.clipping import ClippedSum
from fedblocks.privacy.mechanisms.gaussian import add_gaussian_noise, grid
from fedblocks.privacy.randomness import Randomness


def noisy(x: torch.Tensor, sigma: float, *labels: str | int) -> np.ndarray:
    randomness = Randomness.from_seed(1, *labels)
    return add_gaussian_noise(ClippedSum(x, 1.0, 1), sigma, randomness).numpy()


@given(sigma=st.floats(1e-190, 1e190))
def test_the_grid_is_a_power_of_two_below_the_deviation(sigma: float) -> None:
    assert math.frexp(grid(sigma))[0] == 0.5
    assert sigma / 512 < grid(sigma) <= sigma / 256


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=30),
    sigma=st.floats(1e-12, 1e12),
    sensitivity=st.floats(1e-6, 1e6),
)
def test_every_release_lies_on_the_grid(values: list[float], sigma: float, sensitivity: float) -> None:
    clipped = ClippedSum(torch.tensor(values, dtype=torch.float64), sensitivity, 1)
    released = add_gaussian_noise(clipped, sigma, Randomness.from_seed(0)).numpy()
    units = released / grid(sigma * sensitivity)
    assert np.array_equal(units, np.rint(units))
    assert np.all(np.abs(units) < 2.0**51)


def test_large_sums_keep_all_of_their_noise() -> None:
    """Would catch noise that is rounded away, or a sum so large that its grid is no longer the noise's."""
    x = torch.full((50_000,), 1e11, dtype=torch.float64)
    residual = noisy(x, 1.0) - 1e11
    assert stats.kstest(residual, "norm").pvalue > 1e-3


@pytest.mark.parametrize("x", [0.0, 0.3, -1.7])
def test_released_units_follow_the_exact_law(x: float) -> None:
    """Chi-square over grid cells in the middle, coarser ones outside: P(k) = Phi(k + 1/2) - Phi(k - 1/2)."""
    n, sigma = 400_000, 1.0
    step = grid(sigma)
    units = np.rint(noisy(torch.full((n,), x, dtype=torch.float64), sigma, str(x)) / step)
    centre = math.floor(x / step)
    edges = [-np.inf, *(centre + np.r_[-512:-20:32, -20:21, 52:545:32] + 0.5), np.inf]
    probabilities = np.diff(stats.norm.cdf((np.array(edges) * step - x) / sigma))
    counts = np.histogram(units, bins=edges)[0]
    assert stats.chisquare(counts, n * probabilities).pvalue > 1e-3
    assert abs(units.var() * step**2 - sigma**2) < 4 * np.sqrt(2 / n)
    assert stats.kstest(units[:20_000] * step - x, "norm").pvalue > 1e-3


def is_multiple(values: np.ndarray, unit: float) -> np.ndarray:
    return values / unit == np.rint(values / unit)


def test_an_attack_on_low_order_bits_wins_against_plain_addition_and_not_here() -> None:
    """Mironov 2012: of two neighbours 0 and 1, small releases of 1 + n lack the bits that those of 0 + n have."""
    n = 100_000
    unit = 2.0**-53  # every float 1 + n is a multiple of this, every n small enough is not

    def verdict(released: np.ndarray) -> float:
        """How often the attacker says "the sum was 1" of releases between -1/4 and 1/4."""
        return float(is_multiple(released[np.abs(released) < 0.25], unit).mean())

    plain = [x + Randomness.from_seed(2, str(x)).normal(n) for x in (0.0, 1.0)]
    assert verdict(plain[1]) == 1.0
    assert verdict(plain[0]) < 0.3
    ours = [noisy(torch.full((n,), x, dtype=torch.float64), 1.0, str(x)) for x in (0.0, 1.0)]
    assert verdict(ours[0]) == verdict(ours[1]) == 1.0


@pytest.mark.parametrize("x", [0.0, 1.0, 1 / 3, 2.0**-40, 12345.678])
def test_low_order_bits_of_a_release_are_uniform_whatever_the_sum(x: float) -> None:
    units = noisy(torch.full((200_000,), x, dtype=torch.float64), 1.0, "bits") / grid(1.0)
    last = units.astype(np.int64) & 15
    assert stats.chisquare(np.bincount(last, minlength=16)).pvalue > 1e-3


def test_no_noise_returns_the_sum_unrounded() -> None:
    x = torch.randn(9, dtype=torch.float64)
    assert torch.equal(add_gaussian_noise(ClippedSum(x, 2.0, 1), 0.0, Randomness.from_seed(0)), x)


def test_the_sum_is_left_as_it_was_and_seeds_repeat() -> None:
    x = torch.randn(70_001, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    assert np.array_equal(noisy(x, 1.0), noisy(x, 1.0))
    assert torch.equal(x, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_sums_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(PrivacyError, match="finite"):
        noisy(torch.tensor([0.0, bad], dtype=torch.float64), 1.0)


@pytest.mark.parametrize("sigma", [math.nan, math.inf, -1.0, 1e-300])
def test_noise_that_cannot_be_had_is_refused(sigma: float) -> None:
    with pytest.raises(PrivacyError):
        noisy(torch.zeros(2, dtype=torch.float64), sigma)
