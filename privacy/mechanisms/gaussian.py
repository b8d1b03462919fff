"""The Gaussian mechanism, with protection against attacks on floating point.

A float sum x + n betrays x: only some floats can be written as x + n for a float n, and which ones depends
on x (Mironov, CCS 2012, section 3; Holohan & Braghin, ESORICS 2021, for Gaussians). Here every release is a
multiple of a grid g, a power of two with sigma/512 < g <= sigma/256 that depends on sigma alone:

    M(x) = g rint((x + n) / g),    n ~ N(0, sigma^2 I)

With a real-valued n this is the Gaussian mechanism and a rounding after it: its guarantee is the Gaussian's,
in any dimension, and rounding adds 6e-7 of sigma. x itself is not rounded before, so no sensitivity is added.

What is left is how far the computed n departs from a real one, next to g. x is split into a multiple of g
and a rest, both exact, so magnitudes of x play no part. What the rounding of n costs in epsilon and delta, for the
number of values released, is in `rounding`; every event of Gaussian noise says how many they are.
"""

import math

import torch
from torch import Tensor

from ...errors import PrivacyError
from ..clipping import ClippedSum
from ..randomness import Randomness

# g <= sigma 2^-8: the coarser the grid, the more bits of noise lie below it; the finer, the less is lost.
_GRID_BITS = 8
# Units of g beyond which a float64 could not hold unit and noise exactly; 2^41 deviations of noise or more.
_LARGEST = 2.0**50
# Values at a time, so that all steps are done in cache.
_CHUNK = 1 << 15


def add_gaussian_noise(clipped: ClippedSum, noise_multiplier: float, randomness: Randomness) -> Tensor:
    """The Gaussian mechanism: standard deviation is noise_multiplier times the sum's own sensitivity.

    Returns (P,) float64, every value a multiple of `grid(noise_multiplier * sensitivity)`; the sum itself for
    noise_multiplier 0, which means no privacy. PrivacyError for a sum that is not finite.
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
    """vector + sigma * noise, (n,) each, rounded to multiples of grid(sigma); takes the place of `noise`, float64.

    Values beyond 2^50 units of the grid are set to that before noise is added: it moves no two vectors apart.
    """
    if not math.isfinite(float(vector.sum())):
        raise PrivacyError("the vector to be released is not finite")
    unit = grid(sigma)
    buffers = noise.new_empty(2, min(len(vector), _CHUNK))
    for x, y in zip(vector.split(_CHUNK), noise.split(_CHUNK), strict=True):
        rest, whole = buffers[:, : len(x)]
        rest.copy_(x).mul_(1 / unit).clamp_(-_LARGEST, _LARGEST)
        torch.round(rest, out=whole)
        rest -= whole  # exact: |rest| <= 1/2, so what is added to it rounds as the noise alone does
        y.mul_(sigma / unit).add_(rest).round_().add_(whole).mul_(unit)
    return noise
