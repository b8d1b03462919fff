"""The loss of one block alone (arXiv 2506.14202, equation 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .denoiser import Denoiser


@dataclass(frozen=True, kw_only=True)
class BlockObjective:
    """E_sigma,eps  w(sigma) * loss(predict(y + sigma eps, sigma, x), y), sigma in the block's interval.

    `weight`: "unit" (default: for cross-entropy it measured best) or "edm" (1/c_out^2, the paper's).
    The weight multiplies each example's own loss.

        objective = BlockObjective()
        losses = objective(model, block=0, inputs=x, labels=y, generator=g)      # (N,)
    """

    weight: Literal["unit", "edm"] = "unit"

    def draw(
        self, model: Denoiser, block: int, n: int, width: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """A noise draw for n examples: sigma (n,) in the training interval, eps (n, width) ~ N(0, I)."""
        sigma = model.partition.sample(block, n, generator)
        return sigma, torch.randn(n, width, generator=generator, device=generator.device)

    def at(
        self, model: Denoiser, block: int, context: Tensor, labels: Tensor, sigma: Tensor, eps: Tensor
    ) -> Tensor:
        """Loss of each example at a given noise draw; `context` comes from `model.encode`. -> (N,)"""
        z = model.target(labels) + sigma[:, None] * eps
        loss = model.loss(model.predict(block, z, sigma, context), labels)
        if self.weight == "edm":
            loss = model.preconditioning.weight(sigma) * loss
        return loss

    def __call__(
        self, model: Denoiser, *, block: int, inputs: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        context = model.encode(inputs)
        sigma, eps = self.draw(model, block, len(labels), context.shape[-1], generator)
        return self.at(model, block, context, labels, sigma.to(context.device), eps.to(context.device))
