"""A clip that follows a quantile of the gradients' norms, measured by noisy counts.

Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive Clipping" (NeurIPS 2021),
algorithm 1. A step releases two sums over its batch, that of the clipped gradients and that of b - 1/2, where b
tells whether a gradient was within the clip. The second moves by 1/2 at most with one example. Both together are
one Gaussian mechanism of noise multiplier z, if (section 4, theorem 1)

    z^-2 = z_sum^-2 + (2 count_noise)^-2

so a step costs what the account says for z, and the sum has a little more noise than for z alone. The count is one
more value with floating-point noise, and is accounted as one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..errors import PrivacyError
from .clipping import ClippedSum
from .mechanisms.gaussian import release
from .randomness import Randomness

_SMALLEST = 1e-6


@dataclass(frozen=True, kw_only=True)
class QuantileClip:
    """Follows the `quantile` of norms by steps of `learning_rate` in log clip; `count_noise`: a count's deviation.

    `largest` is the company's own bound; noise is proportional to the clip, so epsilon does not depend on it.

    Raises:
        PrivacyError: quantile or count_noise is out of range.
    """

    quantile: float
    count_noise: float
    learning_rate: float = 0.2
    largest: float = 1e6

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise PrivacyError(f"Expected 0 < quantile={self.quantile} < 1.")
        if not self.count_noise >= 0:
            raise PrivacyError(f"Expected count_noise={self.count_noise} >= 0.")

    @classmethod
    def beside(cls, quantile: float, noise_multiplier: float, expected_batch_size: float) -> QuantileClip:
        """Count noise: a twentieth of the batch (the paper's), or enough to leave the sum 97% of its budget."""
        if noise_multiplier == 0:
            return cls(quantile=quantile, count_noise=0.0)
        return cls(quantile=quantile, count_noise=max(expected_batch_size / 20, 2 * noise_multiplier))

    def sum_noise_multiplier(self, noise_multiplier: float) -> float:
        """z_sum of the gradients' sum, so that both sums together have `noise_multiplier`.

        Raises:
            PrivacyError: the count alone costs more.
        """
        if noise_multiplier == 0:
            return 0.0
        if not 2 * self.count_noise > noise_multiplier:
            raise PrivacyError(
                f"count_noise={self.count_noise} alone costs more than noise {noise_multiplier}."
            )
        return 1 / math.sqrt(noise_multiplier**-2 - (2 * self.count_noise) ** -2)

    def next(self, clipped: ClippedSum, expected_batch_size: float, randomness: Randomness) -> float:
        """The next step's clip, from the number of this step's gradients within `clipped.sensitivity`.

        The divisor is the public expected size; the batch's own is private.
        """
        share = min(max(self._count(clipped, randomness) / expected_batch_size + 0.5, 0.0), 1.0)
        clip = clipped.sensitivity * math.exp(-self.learning_rate * (share - self.quantile))
        return min(max(clip, _SMALLEST), self.largest)

    def _count(self, clipped: ClippedSum, randomness: Randomness) -> float:
        """The noisy sum of b - 1/2, on the grid of its noise like every other release."""
        count = torch.tensor([clipped.within - clipped.examples / 2], dtype=torch.float64)
        if self.count_noise > 0:
            count = release(count, torch.from_numpy(randomness.normal(1)), self.count_noise)
        return float(count)
