"""Scores of reconstructions against closed forms."""

import numpy as np
import pytest

from fedblocks.threat_model.metrics import matched, psnr


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (n, 1, 8, 8))


@pytest.mark.parametrize("decibels", [5.0, 20.0, 40.0, 90.0])
def test_psnr_of_a_known_error(decibels: float) -> None:
    original = images(3)
    error = 10 ** (-decibels / 20)
    assert psnr(original + error, original) == pytest.approx(np.full(3, decibels))


def test_psnr_of_equal_images_is_finite() -> None:
    assert psnr(images(2), images(2)) == pytest.approx([150.0, 150.0])


def test_matching_undoes_a_permutation() -> None:
    original = images(7)
    order = np.random.default_rng(3).permutation(7)
    estimates = original[order] + 0.01
    assert np.allclose(estimates[matched(estimates, original)], original + 0.01)


def test_matching_is_optimal_where_the_greedy_one_is_not() -> None:
    original = np.array([0.0, 0.4]).reshape(2, 1, 1, 1)
    estimates = np.array([0.3, 0.9]).reshape(2, 1, 1, 1)  # greedy gives 0.3 to 0.4 and 0.9 to 0
    assert matched(estimates, original).tolist() == [0, 1]
