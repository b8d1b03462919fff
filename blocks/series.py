"""Time series in units of their own past."""

from __future__ import annotations

import torch
from torch import Tensor


def normalise(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """inputs (N, C, T) and targets (N, C, H) less the inputs' mean, by their deviation; and the deviation."""
    location, scale = location_and_scale(inputs)
    unit = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (inputs - location) / unit, (targets - location) / unit, scale


def location_and_scale(context: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, (N, C, T) -> (N, C, 1) each; deviation 0 where it is constant."""
    constant = context.amax(dim=-1, keepdim=True) == context.amin(dim=-1, keepdim=True)
    location = torch.where(constant, context[..., :1], context.mean(dim=-1, keepdim=True))
    return location, context.std(dim=-1, keepdim=True).masked_fill(constant, 0)
