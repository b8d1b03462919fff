"""Distributed Skellam noise: each company adds a share; only the sum of all is private, and only it is opened.

Agarwal, Kairouz & Liu, "The Skellam Mechanism for Differentially Private Federated Learning" (NeurIPS 2021),
with the rounding of Kairouz, Liu & Steinke, "The Distributed Discrete Gaussian Mechanism" (ICML 2021).

A company's input v is one step's sum of per-example gradients, each clipped to C. It sends

    floor(s v + U) + Sk(share)    mod 2^bits,    U uniform in [0, 1)^d, s a power of two

**What one example changes.** Let v and v' be neighbours, ||v - v'|| <= C. U does not depend on the data, so the
mechanism is a mixture over U, and for each U one whose sensitivity is that of D = floor(s v + U) - floor(s v' + U).
D is a vector of integers with E[D] = s (v - v'), independent coordinates, each s (v - v')_j rounded down or up.
That is the stochastic rounding of a vector x of norm <= sC. Kairouz et al. bound its norm: ||D||^2 is a mean of at
most s^2 C^2 + d/4 plus a sum of independent terms of ranges |2 floor(x_j) + 1|, whose norm is at most
2 (sC + sqrt(d)/2), so by Hoeffding's inequality with probability 1 - beta over U

    ||D||^2 <= s^2 C^2 + d/4 + sqrt(2 ln(1/beta)) (sC + sqrt(d)/2),    and always ||D|| <= sC + sqrt(d).

By joint convexity the guarantee for these U is that of the worst of them; the others cost `BETA` of delta, once a
step. Kairouz et al. round each client's own clipped vector and may draw U again until its norm is in bounds. Here the
bound is on a difference that no company can compute, so U is drawn once and beta is subtracted from delta.
With rounding to nearest only the second bound holds: 3% more noise instead of 0.02% for d = 2^20, sC = 2^15.

**Assumptions.** The coordinator sees only the sum: a company's own vector has only a share of the noise. At most
`tolerated` companies drop out, tell the coordinator their share, or add none.

A modular sum that wraps costs no privacy. It happens with probability below 2^-40, for any inputs: coordinates are
clamped to `limit`, which increases no distance.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, PrivacyError
from ..quantisation import centred
from ..randomness import Randomness
from .skellam_sampler import SkellamSampler

# The probability that the sensitivity bound of rounding fails; subtracted from delta for every step.
BETA = 2.0**-40
_WRAPS = 2.0**-40


def default_scale(dimension: int, clip: float) -> float:
    """The least power of two s with sC >= 2^15 and sC >= 16 sqrt(d): rounding adds less than 0.1% of noise."""
    return 2.0 ** math.ceil(math.log2(max(2.0**15, 16 * math.sqrt(dimension)) / clip))


@dataclass(frozen=True, kw_only=True)
class SkellamNoise:
    """One step's sum over `companies` vectors of `dimension` values; `tolerated` of them may fail or collude.

    `noise_multiplier` z is that of the sum: its noise has at least the variance (z l2)^2, in integer units.
    `clip` is the L2 norm C that one example's gradient is clipped to, `scale` s the levels per unit. `accounted` are
    the values of the largest vector whose account this one shares: l2, l1 and noise are then those of that one, and
    what a shorter vector changes by is no more.

        noise = SkellamNoise(dimension=d, clip=1.0, companies=8, tolerated=2, noise_multiplier=1.2,
                             scale=default_scale(d, 1.0))
        residues = [noise.encode(total, Randomness.from_entropy()) for total in totals]    # each (d,) uint32
        total = noise.decode_sum(sum_mod_2_32)                                             # (d,) float64

    Raises:
        InputError: a value is out of range, or sums could wrap.
    """

    dimension: int
    clip: float
    companies: int
    tolerated: int
    noise_multiplier: float
    scale: float
    bits: int = 32
    accounted: int | None = None

    def __post_init__(self) -> None:
        if self.dimension < 1:
            raise InputError("dimension", self.dimension, "must be at least 1")
        if self.accounted is not None and self.accounted < self.dimension:
            raise InputError("accounted", self.accounted, f"must be at least dimension={self.dimension}")
        for name in ("clip", "noise_multiplier", "scale"):
            if not 1e-30 < getattr(self, name) < 1e30:
                raise InputError(name, getattr(self, name), "must be above 0 and of a usual magnitude")
        if math.frexp(self.scale)[0] != 0.5:
            raise InputError("scale", self.scale, "must be a power of two, so that scaling is exact")
        if self.companies < 1:
            raise InputError("companies", self.companies, "must be at least 1")
        if not 0 <= self.tolerated < self.companies:
            raise InputError("tolerated", self.tolerated, "must be at least 0 and leave one honest company")
        if not 2 <= self.bits <= 32:
            raise InputError("bits", self.bits, "must be from 2 to 32")
        if not self.limit >= self.clip:
            raise InputError("bits", self.bits, f"sums could wrap: with scale={self.scale:g} too few")

    @property
    def l2(self) -> float:
        """Bound on one example's L2 change of the sum in integer units; fails with probability BETA a step."""
        reach, d = self.scale * self.clip, self._accounted
        likely = reach**2 + d / 4 + math.sqrt(2 * math.log(1 / BETA)) * (reach + math.sqrt(d) / 2)
        return math.sqrt(min((reach + math.sqrt(d)) ** 2, likely))

    @property
    def l1(self) -> float:
        """The same in L1 norm; absolute values of integers are at most their squares."""
        return min(math.sqrt(self._accounted) * self.l2, self.l2**2)

    @property
    def _accounted(self) -> int:
        return self.dimension if self.accounted is None else self.accounted

    @property
    def variance_total(self) -> float:
        """Variance of the honest companies' noise in a coordinate of the sum, in integer units."""
        return (self.noise_multiplier * self.l2) ** 2

    @property
    def variance_share(self) -> float:
        """Variance of the noise that each company adds."""
        return self.variance_total / (self.companies - self.tolerated)

    @property
    def limit(self) -> float:
        """Coordinates of one company's vector are clamped to +-limit, in units of the vector.

        companies * (s limit + 1) + t < 2^(bits - 1), where a coordinate of the noise exceeds t with
        probability at most 2^-40: P(|Sk(mu)| >= t) <= 2 exp(-t^2 / (2 mu + 2 t/3)), Bernstein's bound.
        """
        variance = self.companies * self.variance_share
        log = math.log(2 * self.dimension / _WRAPS)
        tail = log / 3 + math.sqrt(log**2 / 9 + 2 * variance * log)
        return ((2.0 ** (self.bits - 1) - 1 - tail) / self.companies - 1) / self.scale

    def encode(self, vector: NDArray[np.float64], randomness: Randomness) -> NDArray[np.uint32]:
        """The company's sum (d,) float64 of gradients clipped to `clip` -> (d,) uint32.

        Raises:
            PrivacyError: the sum is not finite.
        """
        if not isinstance(vector, np.ndarray) or vector.dtype != np.float64:
            raise InputError("vector", type(vector).__name__, "must be a float64 array")
        if vector.shape != (self.dimension,):
            raise InputError("vector", vector.shape, f"must be of shape ({self.dimension},)")
        if not math.isfinite(float(vector.sum())):
            raise PrivacyError("the vector to be released is not finite")
        levels = np.clip(vector, -self.limit, self.limit)
        levels *= self.scale
        integers = np.floor(levels)
        levels -= integers  # exact, in [0, 1)
        # floor(x + U) is one more than floor(x) where 1 - U, which is uniform too, is at most the fraction.
        integers += randomness.uniform(self.dimension) <= levels
        noisy = self._share.sample(self.dimension, randomness)
        noisy += integers.astype(np.int64)
        residues: NDArray[np.uint32] = noisy.astype(np.uint32)
        residues &= np.uint32(2**self.bits - 1)
        return residues

    def decode_sum(self, residues: NDArray[np.uint32]) -> NDArray[np.float64]:
        """The sum mod 2^bits (d,) uint32 of encoded vectors -> (d,) float64, noise included."""
        result: NDArray[np.float64] = centred(residues, self.bits) / self.scale
        return result

    @cached_property
    def _share(self) -> SkellamSampler:
        return SkellamSampler(self.variance_share)
