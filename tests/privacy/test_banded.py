"""Banded correlated noise: its covariance, its sensitivity by brute force, and what it saves."""

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import toeplitz

from fedblocks.errors import InputError, PrivacyError
from fedblocks.privacy.accounting import epsilon
from fedblocks.privacy.clipping import ClippedSum
from fedblocks.privacy.events import GaussianSteps
from fedblocks.privacy.mechanisms import add_gaussian_noise
from fedblocks.privacy.mechanisms.banded import BandedNoise, BandedStream
from fedblocks.privacy.mechanisms.gaussian import grid
from fedblocks.privacy.randomness import Randomness


def banded(steps: int, bands: int, separation: int | None = None, noise: float = 1.0) -> BandedNoise:
    return BandedNoise(steps=steps, bands=bands, separation=separation or bands, noise_multiplier=noise)


def matrix(noise: BandedNoise) -> NDArray[np.float64]:
    column = np.zeros(noise.steps)
    column[: noise.bands] = noise.coefficients
    result: NDArray[np.float64] = toeplitz(column, np.zeros(noise.steps))
    return result


def released(noise: BandedNoise, size: int, clip: float = 1.0, sums: float = 0.0) -> NDArray[np.float64]:
    stream = BandedStream(noise, size, clip, Randomness.from_seed(1, noise.steps, noise.bands))
    zero = ClippedSum(torch.full((size,), sums, dtype=torch.float64), clip, 1)
    return torch.stack([stream.release(zero) for _ in range(noise.steps)]).numpy()  # (steps, size)


@pytest.mark.parametrize(("steps", "bands"), [(5, 1), (6, 2), (9, 4), (4, 4)])
def test_released_noise_has_the_covariance_of_the_inverse(steps: int, bands: int) -> None:
    """And C undoes it: C times the released steps is independent noise of the accounted deviation."""
    size, noise = 200_000, banded(steps, bands, noise=1.5)
    steps_of_noise, c = released(noise, size, clip=2.0), matrix(noise)
    inverse = np.linalg.inv(c)
    covariance = 9 * inverse @ inverse.T
    largest = covariance.max()
    np.testing.assert_allclose(np.cov(steps_of_noise), covariance, atol=5 * largest / math.sqrt(size))
    np.testing.assert_allclose(
        np.cov(c @ steps_of_noise), 9 * np.eye(steps), atol=5 * 9 * 1.5 / math.sqrt(size)
    )


@pytest.mark.parametrize(("steps", "bands"), [(40, 1), (40, 6), (60, 20)])
def test_prefix_error_is_what_running_sums_have(steps: int, bands: int) -> None:
    noise = banded(steps, bands, noise=2.0)
    running = np.cumsum(released(noise, 20_000, clip=0.5), axis=0)
    assert math.sqrt((running**2).mean()) == pytest.approx(0.5 * noise.prefix_error, rel=0.02)
    prefix = np.tril(np.ones((steps, steps))) @ np.linalg.inv(matrix(noise))
    assert noise.prefix_error == pytest.approx(2.0 * np.linalg.norm(prefix) / math.sqrt(steps))


@pytest.mark.parametrize(
    ("steps", "bands", "separation"), [(7, 2, 2), (7, 2, 3), (9, 3, 3), (8, 1, 2), (6, 6, 6), (9, 3, 4)]
)
def test_sensitivity_by_brute_force(steps: int, bands: int, separation: int) -> None:
    """Every allowed pattern with every sign: none passes the stated bound, and a pattern of k reaches it nearly."""
    noise = banded(steps, bands, separation)
    c, largest, most = matrix(noise), 0.0, 0
    for count in range(steps + 1):
        for pattern in itertools.combinations(range(steps), count):
            if any(b - a < separation for a, b in itertools.pairwise(pattern)):
                continue
            most = max(most, count)
            for signs in itertools.product((-1.0, 1.0), repeat=count):
                largest = max(largest, float(np.linalg.norm(c[:, list(pattern)] @ np.array(signs))))
    assert most == noise.participations
    assert largest <= noise.sensitivity * (1 + 1e-12)
    assert largest >= 0.75 * noise.sensitivity


@pytest.mark.parametrize(
    ("steps", "bands", "error"), [(50, 5, 2.74562), (200, 8, 4.10304), (500, 32, 3.81862), (50, 1, 5.04975)]
)
def test_coefficients_are_the_optimum_that_jax_privacy_finds(steps: int, bands: int, error: float) -> None:
    """Figures of jax_privacy 2.0.0, matrix_factorization.toeplitz.optimize_banded_toeplitz."""
    noise = banded(steps, bands)
    assert noise.prefix_error == pytest.approx(error, rel=1e-5)
    assert np.linalg.norm(noise.coefficients) == pytest.approx(1.0)


def test_correlated_noise_beats_independent_noise_at_equal_epsilon() -> None:
    """Same participations, same event, same epsilon: more bands, less noise in running sums."""
    kinds = [banded(240, bands, 24, noise=5.0) for bands in (1, 2, 6, 12, 24)]
    assert len({epsilon([kind.event()], 1e-5) for kind in kinds}) == 1
    errors = [kind.prefix_error for kind in kinds]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(5.0 * math.sqrt(241 / 2))
    assert errors[-1] < 0.3 * errors[0]


def test_the_event_is_as_many_epochs_as_participations() -> None:
    noise = banded(100, 8, 9, noise=3.0)
    assert (noise.event().noise_multiplier, noise.event().epochs) == (3.0, 12)
    full = GaussianSteps(sampling_rate=1.0, noise_multiplier=3.0, steps=12)
    assert epsilon([noise.event()], 1e-5) == pytest.approx(epsilon([full], 1e-5), rel=1e-6)
    assert noise.effective_noise_multiplier == pytest.approx(3.0 / math.sqrt(12))
    single = banded(8, 8, 9, noise=noise.effective_noise_multiplier)
    assert epsilon([single.event()], 1e-5) == pytest.approx(epsilon([noise.event()], 1e-5), rel=1e-3)


def test_a_value_counts_for_every_step_in_which_its_noise_shows() -> None:
    """Would catch floating point charged as for independent noise: 9 steps, an error 16 times as large, squared."""
    event = banded(100, 8, 9, noise=3.0).event(50)
    assert (event.dimension, event.values) == (50 * 9 * 256, 12 * 50 * 9 * 256)
    assert banded(100, 1, 9, noise=3.0).event(50).dimension == 50 * 9 * 4


def test_one_band_is_the_gaussian_mechanism() -> None:
    stream = BandedStream(banded(3, 1, noise=1.3), 100, 2.0, Randomness.from_seed(5))
    randomness = Randomness.from_seed(5)
    for _ in range(3):
        clipped = ClippedSum(torch.randn(100, dtype=torch.float64), 2.0, 7)
        assert torch.equal(stream.release(clipped), add_gaussian_noise(clipped, 1.3, randomness))


def test_releases_lie_on_the_grid_and_carry_the_sum() -> None:
    noise = banded(6, 3, noise=0.7)
    with_sums, without = released(noise, 1000, sums=1 / 3), released(noise, 1000)
    units = with_sums / grid(0.7)
    assert np.array_equal(units, np.rint(units))
    assert np.abs(with_sums - without - 1 / 3).max() <= grid(0.7)


def test_a_resumed_run_goes_on_with_the_same_noise() -> None:
    noise = banded(9, 4)
    zero = ClippedSum(torch.zeros(33, dtype=torch.float64), 1.0, 0)
    resumed = BandedStream(noise, 33, 1.0, Randomness.from_seed(1, 9, 4))
    resumed.skip(6)
    np.testing.assert_array_equal(resumed.release(zero).numpy(), released(noise, 33)[6])


def test_no_step_beyond_the_account_and_no_larger_sensitivity() -> None:
    stream = BandedStream(banded(2, 2), 3, 1.0, Randomness.from_seed(0))
    zero = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(PrivacyError, match="sensitivity"):
        stream.release(ClippedSum(zero, 1.5, 0))
    with pytest.raises(PrivacyError, match="values"):
        stream.release(ClippedSum(torch.zeros(4), 1.0, 0))
    stream.skip(1)
    stream.release(ClippedSum(zero, 1.0, 0))
    with pytest.raises(PrivacyError, match="accounted"):
        stream.release(ClippedSum(zero, 1.0, 0))
    assert "redacted" in repr(stream)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("steps", {"steps": 0}), ("bands", {"bands": 0}), ("bands", {"bands": 6}), ("bands", {"steps": 3}),
        ("separation", {"separation": 2.0}), ("noise_multiplier", {"noise_multiplier": 0.0}),
        ("noise_multiplier", {"noise_multiplier": math.nan}),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(field: str, changes: dict[str, float]) -> None:
    settings = {"steps": 10, "bands": 4, "separation": 5, "noise_multiplier": 1.0}
    with pytest.raises(InputError, match=field):
        BandedNoise(**(settings | changes))  # type: ignore[arg-type]
