"""Exact integers from the Skellam law, of any variance, driven by the AES-CTR stream.

Sk(mu) is the difference of two Poisson numbers of mean mu/2: variance mu, and

    P(k) = exp(-mu) I_k(mu),    I the modified Bessel function (Skellam 1946)

Instead of two Poisson numbers, whose usual samplers lose digits as mu grows (log k! of a large k is the
difference of large numbers), one draw by rejection: a cell of W integers by Walker's alias method (1977) with
weights that are exact multiples of 2^-64, an integer of the cell, and its acceptance with P(k) over the
cell's largest P. log P comes from Debye's expansion (DLMF 10.41.3), which has no cancellation: each probability has a
relative error below 1e-12. Values beyond 12 deviations (512 integers for small mu), of probability 1e-31, are not
drawn.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ive

from ...errors import InputError
from ..randomness import Randomness

_CELLS = 1024
_INDEX_BITS = 10
_THRESHOLD_BITS = 64 - _INDEX_BITS
_BUCKET = 1 << _THRESHOLD_BITS
_DEVIATIONS = 12
_LARGEST_VARIANCE = 2.0**62
# Values at a time, so that all steps stay in cache.
_CHUNK = 1 << 14


class SkellamSampler:
    """Independent draws from Sk(variance).

    sampler = SkellamSampler(variance=4.0)
    noise = sampler.sample(1000, Randomness.from_entropy())    # (1000,) int64
    """

    def __init__(self, variance: float) -> None:
        if not 0 < variance <= _LARGEST_VARIANCE:  # also catches NaN
            raise InputError("variance", variance, "must be above 0 and at most 2^62")
        self.variance = variance
        half = _CELLS // 2
        needed = _DEVIATIONS * math.sqrt(variance) / half
        self._cell_bits = max(0, math.ceil(math.log2(needed)))
        cells = np.arange(-half, half)
        # P decreases on both sides of 0: a cell's largest value is at its end nearer to 0.
        nearest = np.where(cells >= 0, cells, cells + 1) * (1 << self._cell_bits) - (cells < 0)
        peaks = self._probability(nearest.astype(np.float64))  # (cells,)
        weights = _weights(peaks)
        self._thresholds, self._aliases = _alias_table(weights)
        ratios = peaks / np.array(weights, dtype=np.float64)
        # Acceptance of k in a cell: P(k) / (weight * largest ratio), at most 1.
        self._inverse = 1 / (ratios.max() * np.array(weights, dtype=np.float64))
        self._accepted = np.minimum(peaks * self._inverse, 1.0)

    def sample(self, n: int, randomness: Randomness) -> NDArray[np.int64]:
        """(n,) int64."""
        out = np.empty(n, dtype=np.int64)
        missing = []
        for start in range(0, n, _CHUNK):
            part = out[start : start + _CHUNK]
            part[:], accepted = self._propose(len(part), randomness)
            missing.append(np.flatnonzero(~accepted) + start)
        again = np.concatenate(missing) if missing else np.empty(0, dtype=np.int64)
        while again.size:
            out[again], accepted = self._propose(again.size, randomness)
            again = again[~accepted]
        return out

    def _propose(self, n: int, randomness: Randomness) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        words = randomness.words(n)
        index = (words >> np.uint64(_THRESHOLD_BITS)).view(np.int64)
        words &= np.uint64(_BUCKET - 1)
        cell = np.where(words < self._thresholds[index], index, self._aliases[index])
        k = cell - _CELLS // 2
        if not self._cell_bits:
            return k, randomness.uniform(n) <= self._accepted[cell]
        k <<= self._cell_bits
        k += (randomness.words(n) & np.uint64((1 << self._cell_bits) - 1)).view(np.int64)
        acceptance = self._probability(k.astype(np.float64))
        acceptance *= self._inverse[cell]
        return k, randomness.uniform(n) <= acceptance

    def _probability(self, k: NDArray[np.float64]) -> NDArray[np.float64]:
        """P(k) up to a constant factor."""
        mu = self.variance
        if not self._cell_bits:
            small: NDArray[np.float64] = ive(np.abs(k), mu)
            return small
        # With y = k/mu and w = sqrt(k^2 + mu^2):
        #     P(k) ~ (2 pi w)^-1/2 exp(w - mu - k asinh y) (1 + u_1 + u_2 + u_3), u_4 < 0.12 mu^-4 < 1e-13.
        y = k / mu
        squared = y * y
        root = np.sqrt(1 + squared)
        exponent = np.arcsinh(y)
        exponent *= y
        np.subtract(squared / (1 + root), exponent, out=exponent)  # root - 1 without cancellation
        exponent *= mu
        p = squared / (1 + squared)
        t = 1 / (mu * root)
        series = (30375 - 369603 * p) / 414720 * t  # further terms are below 1e-12 within 12 deviations
        series += (81 - (462 - 385 * p) * p) / 1152
        series *= t
        series += (3 - 5 * p) / 24
        series *= t
        series += 1
        result: NDArray[np.float64] = np.exp(exponent)
        result *= series
        result /= np.sqrt(root)
        return result


def _weights(peaks: NDArray[np.float64]) -> list[int]:
    """Integers of sum 2^64 in proportion to `peaks`, none of them 0, only the largest rounded down."""
    weights = [math.ceil(value) for value in peaks / peaks.sum() * 2.0**64]
    weights = [max(1, weight) for weight in weights]
    weights[int(np.argmax(peaks))] -= sum(weights) - (1 << 64)
    return weights


def _alias_table(weights: list[int]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Walker's table (Vose 1991): bucket i is cell i below its threshold and cell `alias` above it, exactly."""
    left, aliases = list(weights), list(range(_CELLS))
    thresholds = [_BUCKET] * _CELLS
    small = [i for i in range(_CELLS) if left[i] < _BUCKET]
    large = [i for i in range(_CELLS) if left[i] >= _BUCKET]
    while small:
        i, j = small.pop(), large[-1]
        thresholds[i], aliases[i] = left[i], j
        left[j] -= _BUCKET - left[i]
        if left[j] < _BUCKET:
            small.append(large.pop())
    return np.array(thresholds, dtype=np.uint64), np.array(aliases, dtype=np.int64)
