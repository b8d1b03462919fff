"""Scores of reconstructed images; their intervals are made in `intervals`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

Array = npt.NDArray[np.float64]

EXACT_PSNR = 40.0
"""The lowest PSNR of a reconstruction that counts as exact, in dB."""

_PSNR_CEILING = 150.0  # higher values are rounding noise, and an infinite score has no mean


def psnr(estimates: Array, originals: Array) -> Array:
    """10 log10(1 / MSE) in dB for images in [0, 1], (n, C, H, W) each -> (n,); at most 150."""
    error = ((estimates - originals) ** 2).reshape(len(originals), -1).mean(1)
    decibels: Array = np.minimum(-10 * np.log10(np.maximum(error, 1e-30)), _PSNR_CEILING)
    return decibels


def ssim(estimates: Array, originals: Array) -> Array:
    """Structural similarity, (n, C, H, W) each -> (n,) in [-1, 1]; the window shrinks with small images."""
    from skimage.metrics import structural_similarity  # takes a second to import

    side = min(originals.shape[-2:])
    window = min(7, side if side % 2 else side - 1)
    if window < 3:
        return np.full(len(originals), np.nan)
    return np.array(
        [
            structural_similarity(  # type: ignore[no-untyped-call]
                o, e, win_size=window, data_range=1.0, channel_axis=0
            )
            for o, e in zip(originals, estimates, strict=True)
        ]
    )


def matched(estimates: Array, originals: Array) -> npt.NDArray[np.intp]:
    """The index of each original's estimate: the assignment of least squared error (Hungarian algorithm).

    A sum has no order. Baselines are matched in the same way, so that matching itself is no gain.
    """
    cost = ((originals[:, None] - estimates[None]) ** 2).reshape(len(originals), len(estimates), -1).mean(2)
    order = np.empty(len(originals), dtype=np.intp)
    rows, columns = linear_sum_assignment(cost)
    order[rows] = columns
    return order


def reidentified(estimates: Array, originals: Array, candidates: Array) -> npt.NDArray[np.bool_]:
    """Whether the original is nearer to its estimate than every one of its candidates.

    estimates, originals (n, C, H, W); candidates (n, m, C, H, W) without the original -> (n,).
    """
    own = ((estimates - originals) ** 2).reshape(len(originals), -1).sum(1)
    rival = ((estimates[:, None] - candidates) ** 2).reshape(*candidates.shape[:2], -1).sum(2)
    nearest: npt.NDArray[np.bool_] = own < rival.min(1)
    return nearest
