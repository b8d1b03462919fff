"""The attacker's public knowledge of images: a Gaussian fitted to public data.

MAP reconstruction needs a prior whose log-density is quadratic, so that one Levenberg-Marquardt step
treats it exactly. The result of an attack without any gradient is the mode of this prior: the baseline
with which every reconstruction is compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class ImagePrior:
    """N(mean, covariance) over flattened images in [0, 1]; `shape` is (C, H, W).

    prior = ImagePrior.fit(public_images)
    prior.mode                      # (C, H, W), the best guess without any gradient
    """

    mean: Tensor  # (N,)
    precision: Tensor  # (N, N)
    shape: torch.Size

    @classmethod
    def fit(cls, images: Tensor, shrinkage: float = 0.05) -> ImagePrior:
        """images (M, C, H, W); the covariance is shrunk towards a multiple of the identity.

        Without shrinkage, pixels that are constant in public images would be taken as known in private ones.

        Raises:
            InputError: there are fewer than 2 images.
        """
        if len(images) < 2:
            raise InputError("public images", len(images), "expected at least 2 to fit a prior")
        flat = images.double().flatten(1)  # (M, N)
        covariance = torch.atleast_2d(torch.cov(flat.T))  # (N, N)
        scale = covariance.diagonal().mean().clamp_min(1e-6)
        eye = torch.eye(len(covariance), dtype=torch.float64)
        shrunk = (1 - shrinkage) * covariance + shrinkage * scale * eye
        return cls(flat.mean(0), torch.linalg.inv(shrunk), images.shape[1:])

    @property
    def mode(self) -> Tensor:
        """The most probable image, (C, H, W)."""
        return self.mean.clamp(0, 1).view(self.shape)
