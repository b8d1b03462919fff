"""A linear readout's input, made alike in all directions by public data (ZCA whitening, Kessy et al. 2018).

A pretrained model's pooled features vary along few directions. Per-example gradients of a linear map on them then lie
along those few too, and noise that is alike in all directions drowns the others. Whitened, every direction has its
share of the clip. It is a fixed linear map of the features, so a readout after it is a linear readout before it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Of the mean variance, added to every direction's: those that public data barely show are not blown up.
_RIDGE = 0.1


class Whitening(nn.Module):
    """x (n, D) -> (x - mean) map, (n, D). Both stay as `measure` made them; before, the output is the input."""

    mean: Tensor
    map: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("map", torch.eye(size))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) @ self.map

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        """Take the mean of x (N, D), N of 2 or more, and the inverse square root of its covariance with the ridge."""
        wide = x.double()
        centred = wide - wide.mean(dim=0)
        covariance = centred.T @ centred / (len(x) - 1)
        variance = covariance.diagonal().mean()
        if variance > 0:  # else all features are equal, and there is nothing to make alike
            values, vectors = torch.linalg.eigh(covariance / variance)
            scales = (values.clamp(min=0) + _RIDGE).rsqrt() / variance.sqrt()
            self.map.copy_(vectors * scales @ vectors.T)
        self.mean.copy_(wide.mean(dim=0))

    def folded(self, head: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight (K, D) and bias (K,) of the linear map that reads x as `head` reads what this makes of it."""
        weight = head.weight.double() @ self.map.double().T
        bias = head.bias.double() - weight @ self.mean.double()
        return weight.to(head.weight.dtype), bias.to(head.bias.dtype)
