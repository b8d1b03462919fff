"""Correlated noise for fixed schedules: banded matrix factorisation, for where Poisson sampling is impractical.

Choquette-Choo et al., "(Amplified) Banded Matrix Factorization" (NeurIPS 2023), with the Toeplitz matrices of
McMahan et al., "A Hassle-free Algorithm for Private Learning in Practice" (2024), without amplification. SGD
applies running sums of its noisy steps. With C lower triangular Toeplitz of `bands` bands c_0, ..., c_(b-1)
and Z independent noise, the steps X are released as

    X + C^-1 Z,    z_t ~ N(0, (noise_multiplier * clip)^2 I)

which can be computed from C X + Z, a Gaussian mechanism, and the other way round. Later steps partly cancel a step's
noise, so the running sums have less noise than with independent noise.

**Sensitivity.** An example may take part in steps at least `separation` >= `bands` apart, so in at most
k = ceil(steps / separation). The columns of C of these steps have no row in common, and ||c|| = 1:
its contributions, each of norm <= clip, change C X by at most sqrt(k) * clip. That is the cost of k Gaussian
steps with `noise_multiplier` on all data (q = 1), or of k epochs of independent noise.

**Assumption.** No example takes part more often. Steps must be assigned to each example independently of all
others, for instance by a group drawn for it once: group i of `separation` takes part in steps
i, i + separation, and so on.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.signal import lfilter
from torch import Tensor

from ...errors import InputError, PrivacyError
from ..clipping import ClippedSum
from ..events import EpochGaussian
from ..randomness import Randomness
from .gaussian import release


@dataclass(frozen=True, kw_only=True)
class BandedNoise:
    """Noise of `steps` steps; `bands` 1 is independent noise.

    noise = BandedNoise(steps=200, bands=8, separation=20, noise_multiplier=4.0)
    event = noise.event(size)                                        # for the ledger: 10 epochs
    stream = BandedStream(noise, size, 1.0, Randomness.from_entropy())
    for ...: noisy = stream.release(clipping.sum(...))               # (size,) float64

    Raises:
        InputError: a value is out of range.
    """

    steps: int
    bands: int
    separation: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        for name in ("steps", "bands", "separation"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(name, value, "must be an integer of at least 1")
        if not self.bands <= min(self.separation, self.steps):
            raise InputError("bands", self.bands, "must be at most separation and steps")
        if not 0 < self.noise_multiplier < math.inf:
            raise InputError(
                "noise_multiplier", self.noise_multiplier, "must be above 0: no noise, no guarantee"
            )

    @property
    def participations(self) -> int:
        """k, the most steps that one example can take part in."""
        return -(-self.steps // self.separation)

    @property
    def sensitivity(self) -> float:
        """||C (X - X')|| in Frobenius norm, at most, for one example and clip 1."""
        return math.sqrt(self.participations)

    @property
    def effective_noise_multiplier(self) -> float:
        """All steps together cost as much as one Gaussian mechanism with this, on all data."""
        return self.noise_multiplier / self.sensitivity

    def event(self, dimension: int | None = None) -> EpochGaussian:
        """What the ledger is charged for all steps: an epoch for every step in which an example may take part.

        An epoch's noise is in all its `separation` steps. For the account of floating point a value counts
        (2 bands)^2 times, since its rounding error is 2 bands times as large: it is a sum over that many steps, of
        values at most about twice as large as independent ones. Given all others, a value's noise is no smaller
        than an independent one's, because the columns of C have norm 1.
        """
        counted = None if dimension is None else dimension * self.separation * (2 * self.bands) ** 2
        return EpochGaussian(
            noise_multiplier=self.noise_multiplier, epochs=self.participations, dimension=counted
        )

    @property
    def sum_variance(self) -> float:
        """Variance of a coordinate's noise in the sum of all steps, in units of (noise_multiplier * clip)^2."""
        response, _ = _response(self.coefficients, self.steps)
        return float(response @ response)

    @property
    def coefficients(self) -> NDArray[np.float64]:
        """c (bands,) of norm 1: those of least `prefix_error`."""
        return np.array(_coefficients(self.steps, self.bands))

    @property
    def prefix_error(self) -> float:
        """Root mean square over steps of a running sum's noise, in units of the clip, for a coordinate."""
        response, weights = _response(self.coefficients, self.steps)
        return self.noise_multiplier * math.sqrt(float(weights @ response**2))


class BandedStream:
    """The noisy steps of one run, in order; holds bands - 1 vectors of noise, which are secret.

    The same randomness gives the same noise: a resumed run makes a new stream with the old key and skips the steps
    that were released. Never release two different sums with the noise of one step.
    """

    def __init__(self, noise: BandedNoise, size: int, clip: float, randomness: Randomness) -> None:
        if not clip > 0:
            raise InputError("clip", clip, "must be above 0")
        self._noise, self._clip, self._randomness = noise, clip, randomness
        self._coefficients = torch.from_numpy(noise.coefficients)
        self._past = torch.zeros(
            noise.bands - 1, size, dtype=torch.float64
        )  # step t in row t mod (bands - 1)
        self._size, self._step = size, 0

    def release(self, clipped: ClippedSum) -> Tensor:
        """The next step's noisy sum (size,) float64, on the grid of `gaussian.grid`.

        Raises:
            PrivacyError: the sum's size or sensitivity is not as accounted, or all accounted steps are released.
        """
        vector = clipped.vector.double()
        if vector.shape != (self._size,):
            raise PrivacyError(f"Expected a vector of {self._size} values, got {tuple(vector.shape)}.")
        if not clipped.sensitivity <= self._clip:
            raise PrivacyError(f"Expected sensitivity={clipped.sensitivity} <= clip={self._clip}.")
        correlated = self._next().to(vector.device, copy=True)
        return release(vector, correlated, self._noise.noise_multiplier * self._clip)

    def skip(self, steps: int) -> None:
        """Pass over steps that were released before, by drawing their noise."""
        for _ in range(steps):
            self._next()

    def _next(self) -> Tensor:
        """Row t of C^-1 Z for a standard Z: y_t = (z_t - c_1 y_(t-1) - ... - c_(b-1) y_(t-b+1)) / c_0."""
        if self._step >= self._noise.steps:
            raise PrivacyError(f"all {self._noise.steps} steps that were accounted for are released")
        y = torch.from_numpy(self._randomness.normal(self._size))
        rows = len(self._past)
        if rows:
            ages = torch.remainder(self._step - 1 - torch.arange(rows), rows)  # of each row, less 1
            y -= self._coefficients[1:][ages] @ self._past
        y /= self._coefficients[0]
        if rows:
            self._past[self._step % rows] = y
        self._step += 1
        return y

    def __repr__(self) -> str:
        return f"BandedStream(step={self._step}, <redacted>)"


def _response(c: NDArray[np.float64], steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First column b (steps,) of A C^-1, A the matrix of running sums, and the weights of its squares.

    The mean over t of the variance of running sum t is the sum over j of (1 - j/steps) b_j^2.
    """
    response: NDArray[np.float64] = lfilter([1.0], c, np.ones(steps))
    return response, 1 - np.arange(steps) / steps


@lru_cache(maxsize=64)
def _coefficients(steps: int, bands: int) -> tuple[float, ...]:
    """Least mean variance of the running sums at norm 1, by L-BFGS from the coefficients of (1 - x)^(-1/2).

    Those are optimal up to a constant without bands (Fichtenberger et al. 2023). C^-1 is applied by filtering.
    """

    def loss(tail: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        c = np.concatenate([[1.0], tail])
        with np.errstate(over="ignore", invalid="ignore"):
            b, weights = _response(c, steps)
            variance = weights @ b**2
            adjoint = lfilter([1.0], c, (2 * weights * b)[::-1])[::-1]
        if not np.isfinite(variance) or not np.all(np.isfinite(adjoint)):
            return 1e300, np.zeros_like(tail)
        gradient = np.array([-adjoint[i:] @ b[: steps - i] for i in range(1, bands)])
        squared = c @ c
        return float(np.log(variance) + np.log(squared)), gradient / variance + 2 * tail / squared

    i = np.arange(1, bands)
    start = np.cumprod((2 * i - 1) / (2 * i))
    tail = (
        minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x if bands > 1 else start
    )
    c = np.concatenate([[1.0], tail])
    return tuple(float(value) for value in c / np.linalg.norm(c))
