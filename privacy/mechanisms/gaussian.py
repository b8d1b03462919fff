"""The Gaussian mechanism, with protection against attacks on floating point.

A float sum x + n reveals x: only some floats can be written as x + n for a float n, and which ones depends
on x (Mironov, CCS 2012, section 3; Holohan & Braghin, ESORICS 2021, for Gaussians). Here every release is a
multiple of a grid g, a power of two with sigma/512 < g <= sigma/256 that depends on sigma alone:

    M(x) = g rint((x + n) / g),    n ~ N(0, sigma^2 I)

With a real-valued n this is the Gaussian mechanism and a rounding after it: its guarantee is the Gaussian's,
in any dimension, and rounding adds 6e-7 of sigma. x itself is not rounded before, so no sensitivity is added.

What remains is the error of the computed n, relative to g. x is split into a multiple of g and a rest, both exact,
so the magnitude of x does not matter. `rounding` gives the cost of n's error in epsilon and delta, for the number of
values released; every event of Gaussian noise records that number.
"""

import math

import torch
from torch import Tensor

from ...errors import PrivacyError
from ..clipping import ClippedSum
from ..randomness import Randomness

# g <= sigma 2^-8: a coarser grid has more bits of noise below it, a finer one loses less accuracy.
_GRID_BITS = 8
# In units of g: above this a float64 cannot hold unit and noise exactly. It is at least 2^41 deviations of noise.
_LARGEST = 2.0**50
# Values at a time, so that all steps stay in cache.
_CHUNK = 1 << 15


def add_gaussian_noise(clipped: ClippedSum, noise_multiplier: float, randomness: Randomness) -> Tensor:
    """The Gaussian mechanism: standard deviation is noise_multiplier times the sum's own sensitivity.

    Returns (P,) float64, every value a multiple of `grid(noise_multiplier * sensitivity)`; the sum itself for
    noise_multiplier 0, which means no privacy.

    Raises:
        PrivacyError: the sum is not finite, or the deviation is not between 1e-200 and 1e200.
    """
    if noise_multiplier == 0:
        return clipped.vector
    noise = torch.from_numpy(randomness.normal(len(clipped.vector))).to(clipped.vector.device)
    return release(clipped.vector, noise, noise_multiplier * clipped.sensitivity)


def grid(sigma: float) -> float:
    """The power of two g with sigma/512 < g <= sigma/256."""
    if not 1e-200 < sigma < 1e200:  # also catches NaN
        raise PrivacyError("Expected a standard deviation between 1e-200 and 1e200.")
    return math.ldexp(1.0, math.frexp(sigma)[1] - 1 - _GRID_BITS)


def release(vector: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """vector + sigma * noise, (n,) each, rounded to multiples of grid(sigma), in place of `noise`, float64.

    Values are clamped to 2^50 units of the grid before noise is added, which increases no distance; raises as
    `add_gaussian_noise`.
    """
    if not math.isfinite(float(vector.sum())):
        raise PrivacyError("the vector to be released is not finite")
    unit = grid(sigma)
    buffers = noise.new_empty(2, min(len(vector), _CHUNK))
    for x, y in zip(vector.split(_CHUNK), noise.split(_CHUNK), strict=True):
        rest, whole = buffers[:, : len(x)]
        rest.copy_(x).mul_(1 / unit).clamp_(-_LARGEST, _LARGEST)
        torch.round(rest, out=whole)
        rest -= whole  # exact: |rest| <= 1/2, so adding it to the noise rounds as the noise alone does
        y.mul_(sigma / unit).add_(rest).round_().add_(whole).mul_(unit)
    return noise
