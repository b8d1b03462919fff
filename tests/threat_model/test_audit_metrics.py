"""Scores of reconstructions against closed forms."""

import numpy as np
import pytest

from fedblocks.threat_model.metrics import matched, psnr, reidentified, ssim


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (n, 1, 8, 8))


@pytest.mark.parametrize("decibels", [5.0, 20.0, 40.0, 90.0])
def test_psnr_of_a_known_error(decibels: float) -> None:
    original = images(3)
    error = 10 ** (-decibels / 20)
    assert psnr(original + error, original) == pytest.approx(np.full(3, decibels))


def test_psnr_of_equal_images_is_finite() -> None:
    assert psnr(images(2), images(2)) == pytest.approx([150.0, 150.0])


def test_ssim_is_one_for_equal_images_and_falls_with_noise() -> None:
    original = images(4)
    noisy = original + 0.2 * np.random.default_rng(1).standard_normal(original.shape)
    assert ssim(original, original) == pytest.approx(np.ones(4))
    assert (ssim(noisy, original) < 0.95).all()


@pytest.mark.parametrize("size", [2, 3, 28])
def test_ssim_takes_any_size(size: int) -> None:
    x = np.random.default_rng(0).uniform(0, 1, (2, 3, size, size))
    assert ssim(x, x).shape == (2,)


def test_matching_undoes_a_permutation() -> None:
    original = images(7)
    order = np.random.default_rng(3).permutation(7)
    estimates = original[order] + 0.01
    assert np.allclose(estimates[matched(estimates, original)], original + 0.01)


def test_matching_is_optimal_where_the_greedy_one_is_not() -> None:
    original = np.array([0.0, 0.4]).reshape(2, 1, 1, 1)
    estimates = np.array([0.3, 0.9]).reshape(2, 1, 1, 1)  # greedy gives 0.3 to 0.4 and 0.9 to 0
    assert matched(estimates, original).tolist() == [0, 1]


def test_reidentification_needs_the_nearest_candidate() -> None:
    original = np.zeros((2, 1, 2, 2))
    candidates = np.stack([np.full((5, 1, 2, 2), 1.0), np.full((5, 1, 2, 2), 1.0)])
    estimates = np.stack([np.full((1, 2, 2), 0.4), np.full((1, 2, 2), 0.6)])
    assert reidentified(estimates, original, candidates).tolist() == [True, False]
