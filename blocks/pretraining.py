"""Public pretraining: shared parts and all blocks on data that may be seen by everyone.

The shared parts (embeddings, final norm, head) are trained only here and are frozen afterwards, so that no
company's gradient ever reaches the input side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .denoiser import Denoiser
from .objective import BlockObjective


def pretrain(
    model: Denoiser,
    inputs: Tensor,
    labels: Tensor,
    *,
    objective: BlockObjective,
    steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    generator: torch.Generator,
    on_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Minimise the mean of all blocks' losses with AdamW and a cosine schedule, in place.

    inputs (N, ...), labels (N,) on the model's device; each step draws one batch with replacement.
    """
    model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(steps, 1))
    for step in range(steps):
        index = torch.randint(len(labels), (batch_size,), generator=generator).to(inputs.device)
        x, y = inputs[index], labels[index]
        losses = [
            objective(model, block=b, inputs=x, labels=y, generator=generator).mean()
            for b in range(model.partition.blocks)
        ]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).mean().backward()
        optimizer.step()
        schedule.step()
        on_step(step + 1)
    model.requires_grad_(False).eval()
