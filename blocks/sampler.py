"""Inference: one denoising chain through the blocks, from the highest noise down."""

from __future__ import annotations

import torch
from torch import Tensor

from .denoiser import Denoiser


@torch.no_grad()
def sample_chain(
    model: Denoiser, inputs: Tensor, generator: torch.Generator, steps_per_block: int = 1
) -> list[Tensor]:
    """The prediction after each block, in order; the last one is the model's answer.

    Euler steps of the probability-flow ODE, z += (s' - s)(z - D)/s (Karras et al. 2022, algorithm 1).
    The grid lies at the intervals' probability midpoints (see `Partition.midpoints`), so that no block
    runs where it cannot act. inputs (N, ...) -> B predictions, for a classifier each (N, classes).
    """
    context = model.encode(inputs)
    n, width = len(inputs), context.shape[-1]
    grid = model.partition.midpoints(steps_per_block)
    z = grid[0][1] * torch.randn(n, width, generator=generator, device=generator.device).to(context.device)
    predictions: list[Tensor] = []
    for step, (block, level) in enumerate(grid):
        sigma = torch.full((n,), level, device=context.device)
        prediction = model.predict(block, z, sigma, context)
        if step + 1 == len(grid) or grid[step + 1][0] != block:
            predictions.append(prediction)
        if step + 1 < len(grid):
            z = z + (grid[step + 1][1] - level) * (z - model.estimate(prediction)) / level
    return predictions
