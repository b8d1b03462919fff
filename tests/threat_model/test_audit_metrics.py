"""Scores of reconstructions against closed forms, and intervals against data of known law."""

import numpy as np
import pytest

from fedblocks.errors import InputError
from fedblocks.threat_model.metrics import matched, psnr, reidentified, ssim, summarise


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


def test_intervals_cover_the_mean_at_their_rate() -> None:
    draw = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        values = draw.normal(3.0, 2.0, 40)
        score = summarise(values, np.arange(40), draw, resamples=400)
        covered += score.low <= 3.0 <= score.high
    assert 176 <= covered <= 199  # 95% nominal; the percentile bootstrap falls a little short at n=40


def test_clustered_intervals_are_wider_where_clusters_agree() -> None:
    draw = np.random.default_rng(6)
    clusters = np.repeat(np.arange(12), 5)
    values = draw.normal(0, 1, 12)[clusters] + 0.1 * draw.normal(0, 1, 60)
    clustered = summarise(values, clusters, draw)
    naive = summarise(values, np.arange(60), draw)
    assert clustered.high - clustered.low > 1.5 * (naive.high - naive.low)
    assert clustered.mean == naive.mean
    assert clustered.worst == values.max()


def test_no_cases_have_no_mean() -> None:
    with pytest.raises(InputError, match="expected one value"):
        summarise(np.array([]), np.array([], dtype=np.int64), np.random.default_rng(0))
