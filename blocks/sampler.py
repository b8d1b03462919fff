"""Inference: one denoising chain through the blocks, from the highest noise down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .noise import Partition


class Chained(Protocol):
    """The part of a `Denoiser` that sampling uses; documented there."""

    partition: Partition
    steps_per_block: int

    @property
    def device(self) -> torch.device: ...

    def contexts(self, inputs: Tensor) -> list[Tensor]: ...

    def clean(self, targets: Tensor) -> Tensor: ...

    def predict(self, block: int, z: Tensor, level: Tensor, context: Tensor) -> Tensor: ...

    def prior(self, shape: torch.Size, level: float, generator: torch.Generator) -> Tensor: ...

    def advance(
        self, z: Tensor, prediction: Tensor, level: float, to: float, generator: torch.Generator
    ) -> Tensor: ...


@torch.no_grad()
def sample_chain(
    model: Chained,
    inputs: Tensor,
    like: Tensor,
    generator: torch.Generator,
    steps_per_block: int | None = None,
    draws: int = 1,
) -> list[Tensor]:
    """The prediction after each block, in order; the last one is the model's prediction.

    inputs (N, ...); of `like` only the shape is used, which is that of the targets. `draws` chains for each input,
    side by side in the predictions (N draws, ...).
    """
    return _of_inputs(model, inputs, like, generator, steps_per_block, draws)[0]


@torch.no_grad()
def generate(
    model: Chained,
    inputs: Tensor,
    like: Tensor,
    generator: torch.Generator,
    steps_per_block: int | None = None,
) -> Tensor:
    """A sample of the clean target, (N, ...): the chain, and one step from its last level to no noise."""
    return _of_inputs(model, inputs, like, generator, steps_per_block)[1]


def _of_inputs(
    model: Chained,
    inputs: Tensor,
    like: Tensor,
    generator: torch.Generator,
    steps_per_block: int | None,
    draws: int = 1,
) -> tuple[list[Tensor], Tensor]:
    contexts = model.contexts(inputs)
    shape = torch.Size((len(inputs) * draws, *model.clean(like[:1]).shape[1:]))
    return run_chain(
        model, shape, lambda b, z, level: model.predict(b, z, level, contexts[b]), generator, steps_per_block
    )


def run_chain(
    model: Chained,
    shape: torch.Size,
    predict: Callable[[int, Tensor, Tensor], Tensor],
    generator: torch.Generator,
    steps_per_block: int | None = None,
    start: Tensor | None = None,
) -> tuple[list[Tensor], Tensor]:
    """The chain with `predict(block, z, level)`: the prediction after each block, and z without noise.

    `shape` is that of z; `start`: z at first, none means the prior's. The levels are those of
    `Partition.midpoints`, at which every block has an effect.
    """
    grid = model.partition.midpoints(steps_per_block or model.steps_per_block)
    z = (model.prior(shape, grid[0][1], generator) if start is None else start).to(model.device)
    predictions: list[Tensor] = []
    for (block, level), (after, to) in zip(grid, [*grid[1:], (None, 0.0)], strict=True):
        prediction = predict(block, z, torch.full(shape[:1], level, device=z.device))
        if after != block:
            predictions.append(prediction)
        z = model.advance(z, prediction, level, to, generator)
    return predictions, z
