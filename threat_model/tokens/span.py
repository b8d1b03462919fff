"""How well a direction agrees with the rows of a gradient that is a sum of outer products.

DAGER (Petrov et al. 2024, arXiv 2405.15586): the gradient of a linear map's rows is sum_t d_t a_t^T, so every input
a_t lies in its row space, and no other vector does while there are fewer inputs than dimensions. Where there are not,
or where noise fills the space, the inputs still lie where the gradient is large: their leverage a^T (G^T G)^-1 a is
small. The leverage is what is computed here in every case; in the first it is a hard check, as the leverage outside
of the row space is that of rounding errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of a float32 gradient, as shares of its first singular value: rounding errors are mostly below the first of these,
# and hardly ever above the second.
_ROUNDING = float(torch.finfo(torch.float32).eps) / 8
_ROUNDING_AT_MOST = 4 * float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class Span:
    """The row space of a gradient (R, D) of keys and values, R = 2 D, with noise of deviation `noise` an entry.

    span = Span.of(rows, noise=0.0)
    span.leverage(inputs)            # (..., D) -> (...,), log10; small for what is in the gradient
    span.rank                        # below D: the leverage is a hard check
    """

    directions: Tensor  # (D, D), a direction a row
    sizes: Tensor  # (D,) singular values, decreasing, the first 1
    floor: float  # in units of the first

    @classmethod
    def of(cls, rows: Tensor, noise: float) -> Span:
        # Keys and values differ in size by orders of magnitude; noise is the same in both.
        parts = rows.chunk(2)
        norms = [float(part.norm().clamp_min(1e-30)) for part in parts]
        scaled = torch.cat([part / norm for part, norm in zip(parts, norms, strict=True)])
        _, sizes, directions = torch.linalg.svd(scaled, full_matrices=False)
        first = float(sizes[0].clamp_min(1e-30))
        # The largest singular value of noise alone (Bai & Yin 1993).
        largest = noise / min(norms) * (rows.shape[0] ** 0.5 + rows.shape[1] ** 0.5)
        return cls(directions, sizes / first, max(_ROUNDING, largest / first))

    @property
    def width(self) -> int:
        return self.directions.shape[1]

    @property
    def rank(self) -> int:
        """Directions that are certainly above rounding errors and noise."""
        return int((self.sizes > max(self.floor, _ROUNDING_AT_MOST)).sum())

    def _coordinates(self, inputs: Tensor) -> Tensor:
        unit = inputs / inputs.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        coordinates: Tensor = unit @ self.directions.T
        return coordinates

    def leverage(self, inputs: Tensor) -> Tensor:
        """log10 of a^T (G^T G + floor^2)^-1 a of unit vectors along inputs (..., D)."""
        weights = 1 / (self.sizes.square() + self.floor**2)
        return (self._coordinates(inputs).square() @ weights).log10()

    def energy(self, inputs: Tensor) -> Tensor:
        """log10 of |G a|^2: what is left to go by where noise is larger than the gradient."""
        return (self._coordinates(inputs).square() @ self.sizes.square()).clamp_min(1e-30).log10()
