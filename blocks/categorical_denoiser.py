"""Targets from a finite set (labels, tokens), denoised as rows of a fixed table.

Given the target y, its noisy embedding z = e_y + sigma eps and the clean input x are independent, so
p(y | x, z) is proportional to p(y | x) p(z | y), and p(z | y) is known: a Gaussian around e_y. The blocks'
logits are therefore the network's, which have to come from the input, plus the log-likelihood of z:

    logits = F(x, E[e_y | z], sigma) + (z . e_y - |e_y|^2 / 2) / sigma^2

A network that must learn the second term itself learns at low noise to copy z and never to read its input,
which is what later blocks of the published code do. z enters the network as its posterior mean, which holds
all it tells about y and, unlike z, injects no noise where it tells nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .denoiser import Features, GaussianDenoiser
from .information import posterior_entropy
from .noise import NoiseLaw, Partition
from .preconditioning import Preconditioning


class EmbeddedDenoiser(GaussianDenoiser):
    """Targets (N, ...) long in [0, V), clean (N, ..., D), predictions logits (N, ..., V)."""

    table: Tensor

    def __init__(
        self, partition: Partition, preconditioning: Preconditioning, features: Features, table: Tensor
    ) -> None:
        super().__init__(partition, preconditioning, features)
        # Fixed, and of unit norm by construction: the interface between the blocks, which no block may move.
        self.register_buffer("table", F.normalize(table, dim=1))

    @classmethod
    def information(cls, law: NoiseLaw, classes: int | None) -> tuple[list[float], list[float]] | None:
        return None if classes is None else posterior_entropy(law, classes)

    def clean(self, targets: Tensor) -> Tensor:
        return self.table[targets]

    def evidence(self, z: Tensor, sigma: Tensor) -> Tensor:
        """log p(z | y) up to a constant: z (N, ..., D) -> (N, ..., V)."""
        variance = sigma.view(-1, *[1] * (z.dim() - 1)) ** 2
        return (z @ self.table.T - 0.5) / variance

    def posterior_mean(self, evidence: Tensor) -> Tensor:
        """E[e_y | z], scaled so that its entries are of size 1: (N, ..., V) -> (N, ..., D)."""
        return evidence.softmax(dim=-1) @ self.table * math.sqrt(self.table.shape[1])

    def estimate(self, prediction: Tensor) -> Tensor:
        return prediction.softmax(dim=-1) @ self.table

    def loss(self, prediction: Tensor, targets: Tensor) -> Tensor:
        each = F.cross_entropy(prediction.flatten(0, -2), targets.flatten(), reduction="none")
        return each.view(len(targets), -1).mean(dim=1)

    def prior(self, shape: torch.Size, level: float, generator: torch.Generator) -> Tensor:
        """The mean of the prior, rather than a draw: a draw's noise would only blur the evidence."""
        return torch.zeros(shape)
