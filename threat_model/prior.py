"""The attacker's public knowledge of a real field: a Gaussian fitted to public data.

MAP reconstruction needs a prior whose log-density is quadratic, so that one Gauss-Newton step treats it exactly. The
result of an attack without any gradient is the mode of this prior: the baseline with which every reconstruction is
compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class GaussianPrior:
    """N(mean, covariance) over a flattened field of `shape`, whose values lie within `bounds`.

    prior = GaussianPrior.fit(public_images, (0.0, 1.0))
    prior.mode                      # (C, H, W), the best guess without any gradient
    """

    mean: Tensor  # (N,)
    precision: Tensor  # (N, N)
    shape: torch.Size
    bounds: tuple[float, float] | None = None

    @classmethod
    def fit(
        cls, values: Tensor, bounds: tuple[float, float] | None = None, shrinkage: float = 0.05
    ) -> GaussianPrior:
        """values (M, *shape); the covariance is shrunk towards a multiple of the identity.

        Without shrinkage, what is constant in public data would be taken as known in private ones.

        Raises:
            InputError: there are fewer than 2 values.
        """
        if len(values) < 2:
            raise InputError("public examples", len(values), "expected at least 2 to fit a prior")
        flat = values.double().reshape(len(values), -1)  # (M, N)
        covariance = torch.atleast_2d(torch.cov(flat.T))  # (N, N)
        scale = covariance.diagonal().mean().clamp_min(1e-6)
        eye = torch.eye(len(covariance), dtype=torch.float64)
        shrunk = (1 - shrinkage) * covariance + shrinkage * scale * eye
        return cls(flat.mean(0), torch.linalg.inv(shrunk), values.shape[1:], bounds)

    @property
    def mode(self) -> Tensor:
        """The most probable value, of the field's shape."""
        return self.within(self.mean).view(self.shape)

    def within(self, values: Tensor) -> Tensor:
        return values if self.bounds is None else values.clamp(*self.bounds)
