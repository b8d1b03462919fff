"""EDM preconditioning (Karras et al. 2022, arXiv 2206.00364, table 1), as DiffusionBlocks uses it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True, kw_only=True)
class Preconditioning:
    """D(z; sigma) = c_skip z + c_out F(c_in z; c_noise); all methods map (N,) sigma to (N,).

    With these coefficients the effective target of F has unit variance when the clean signal has
    standard deviation `sigma_data`.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise InputError("sigma_data", self.sigma_data, "expected a number > 0")

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        return sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()

    def c_in(self, sigma: Tensor) -> Tensor:
        return 1 / (sigma**2 + self.sigma_data**2).sqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        return torch.log(sigma) / 4

    def weight(self, sigma: Tensor) -> Tensor:
        """EDM loss weight 1/c_out^2."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
