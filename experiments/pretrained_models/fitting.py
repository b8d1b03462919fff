"""Training of the small models, in plain PyTorch: AdamW, a warm start, and a rate that falls to nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Progress = Callable[[int, int], None]
"""Steps done, of how many."""

_WARM_SHARE = 0.05


def fit(
    model: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    learning_rate: float,
    on_step: Progress,
    seed: int = 0,
) -> None:
    """`loss` draws a batch with the generator that it is given."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    warm = max(1, round(_WARM_SHARE * steps))

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / warm) * (0.5 + 0.5 * math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        loss(generator).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(step + 1, steps)
    model.eval()
