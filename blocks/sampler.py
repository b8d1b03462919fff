"""Inference: one denoising chain through the blocks, from the highest noise down."""

from __future__ import annotations

import torch
from torch import Tensor

from .denoiser import Denoiser


@torch.no_grad()
def sample_chain(
    model: Denoiser, inputs: Tensor, like: Tensor, generator: torch.Generator, steps_per_block: int = 1
) -> list[Tensor]:
    """The prediction after each block, in order; the last one is the model's answer.

    The grid lies at the middle of the intervals' shares (see `Partition.midpoints`), so that no block runs
    where it cannot act. inputs (N, ...); `like` has the targets' shape, which is all that is read of it.
    """
    return _run(model, inputs, like, generator, steps_per_block)[0]


@torch.no_grad()
def generate(
    model: Denoiser, inputs: Tensor, like: Tensor, generator: torch.Generator, steps_per_block: int = 1
) -> Tensor:
    """A sample of the clean target, (N, ...): the chain, and from its last level one step to no noise."""
    return _run(model, inputs, like, generator, steps_per_block)[1]


def _run(
    model: Denoiser, inputs: Tensor, like: Tensor, generator: torch.Generator, steps_per_block: int
) -> tuple[list[Tensor], Tensor]:
    """The prediction after each block, and z at no noise."""
    contexts = model.contexts(inputs)
    shape = model.clean(like[:1]).shape[1:]
    grid = model.partition.midpoints(steps_per_block)
    z = model.prior(torch.Size((len(inputs), *shape)), grid[0][1], generator).to(model.device)
    predictions: list[Tensor] = []
    for (block, level), (after, to) in zip(grid, [*grid[1:], (None, 0.0)], strict=True):
        levels = torch.full((len(inputs),), level, device=z.device)
        prediction = model.predict(block, z, levels, contexts[block])
        if after != block:
            predictions.append(prediction)
        z = model.advance(z, prediction, level, to, generator)
    return predictions, z
