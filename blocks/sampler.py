"""Inference: one denoising chain through the blocks, from the highest noise down."""

from __future__ import annotations

import torch
from torch import Tensor

from .denoiser import Denoiser


@torch.no_grad()
def sample_chain(
    model: Denoiser,
    inputs: Tensor,
    like: Tensor,
    generator: torch.Generator,
    steps_per_block: int = 1,
    draws: int = 1,
) -> list[Tensor]:
    """The prediction after each block, in order; the last one is the model's answer.

    The grid lies at the middle of the intervals' shares (see `Partition.midpoints`), so that no block runs
    where it cannot act. inputs (N, ...); `like` has the targets' shape, which is all that is read of it.
    `draws` chains an input, side by side in the predictions (N draws, ...).
    """
    contexts = model.contexts(inputs)
    shape = model.clean(like[:1]).shape[1:]
    grid = model.partition.midpoints(steps_per_block)
    z = model.prior(torch.Size((len(inputs) * draws, *shape)), grid[0][1], generator).to(model.device)
    predictions: list[Tensor] = []
    for step, (block, level) in enumerate(grid):
        levels = torch.full((len(z),), level, device=z.device)
        prediction = model.predict(block, z, levels, contexts[block])
        if step + 1 == len(grid) or grid[step + 1][0] != block:
            predictions.append(prediction)
        if step + 1 < len(grid):
            z = model.advance(z, prediction, level, grid[step + 1][1], generator)
    return predictions
