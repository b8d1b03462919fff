"""Scores of reconstructed images; their intervals are made in `intervals`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

Array = npt.NDArray[np.float64]

_PSNR_CEILING = 150.0  # higher values are rounding noise, and an infinite score has no mean


def psnr(estimates: Array, originals: Array) -> Array:
    """10 log10(1 / MSE) in dB for images in [0, 1], (n, C, H, W) each -> (n,); at most 150."""
    error = ((estimates - originals) ** 2).reshape(len(originals), -1).mean(1)
    decibels: Array = np.minimum(-10 * np.log10(np.maximum(error, 1e-30)), _PSNR_CEILING)
    return decibels


def matched(estimates: Array, originals: Array) -> npt.NDArray[np.intp]:
    """The index of each original's estimate: the assignment of least squared error (Hungarian algorithm).

    A sum has no order. Baselines are matched in the same way, so that matching itself is no gain.
    """
    cost = ((originals[:, None] - estimates[None]) ** 2).reshape(len(originals), len(estimates), -1).mean(2)
    order = np.empty(len(originals), dtype=np.intp)
    rows, columns = linear_sum_assignment(cost)
    order[rows] = columns
    return order
