"""The quality of a model: its family's metric after each block of the chain."""

from __future__ import annotations

import torch
from torch import Tensor

from .denoiser import Denoiser
from .sampler import sample_chain

_AT_ONCE = 512


def chain_quality(model: Denoiser, inputs: Tensor, targets: Tensor, seed: int) -> list[float]:
    """`model.metric` after each block, over all examples; a function of model, examples and seed alone."""
    return quality_in_chain(model, inputs, targets, torch.Generator().manual_seed(seed))


@torch.no_grad()
def quality_in_chain(
    model: Denoiser, inputs: Tensor, targets: Tensor, generator: torch.Generator
) -> list[float]:
    """`model.metric` after each block, over all examples.

    A family whose metric belongs to a set rather than to single examples has a `chain_quality` of its own.
    """
    own = getattr(model, "chain_quality", None)
    if own is not None:
        found: list[float] = own(inputs, targets, generator)
        return found
    total = torch.zeros(model.partition.blocks, dtype=torch.float64)
    for start in range(0, len(targets), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        x, y = inputs[part].to(model.device), targets[part].to(model.device)
        for b, prediction in enumerate(sample_chain(model, x, y, generator)):
            total[b] += model.score(prediction, y).double().sum().cpu()
    return [float(v) for v in total / len(targets)]
