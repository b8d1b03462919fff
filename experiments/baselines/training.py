"""One way to train and to measure, so that methods differ in their losses alone.

Every method sees the same batches, takes the steps of the same optimiser (see `blocks.training.optimizer_of`)
and is judged on the same test split.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...blocks.training import Schedule, follow, optimizer_of
from ..memory import training_memory

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Split:
    """Labelled images (N, C, H, W) in [0, 1], those of the test never seen in training."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    shift: int = 0

    def batches(self, schedule: Schedule, generator: torch.Generator) -> Batches:
        """`schedule.steps` full batches, epoch after epoch, each image moved by up to `shift` pixels."""
        images, labels = self.train
        waiting = torch.empty(0, dtype=torch.int64)
        for _ in range(schedule.steps):
            while len(waiting) < schedule.batch_size:
                waiting = torch.cat([waiting, torch.randperm(len(labels), generator=generator)])
            index, waiting = waiting[: schedule.batch_size], waiting[schedule.batch_size :]
            yield moved(images[index], self.shift, generator), labels[index]


def moved(images: Tensor, by: int, generator: torch.Generator) -> Tensor:
    """Each image (C, H, W) moved by -by to by pixels along both axes, zeros moving in: the same shape."""
    if not by:
        return images
    n, _, h, w = images.shape
    padded = F.pad(images, (by, by, by, by))
    at = torch.randint(2 * by + 1, (2, n, 1), generator=generator)
    rows, columns = at[0] + torch.arange(h), at[1] + torch.arange(w)  # (N, H), (N, W)
    picked = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
    return picked.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Fitted:
    """Cost of a training: processor seconds; bytes of its last step by part (see `memory.training_memory`)."""

    seconds: float
    memory: dict[str, int]


def fit(
    network: nn.Module, losses: Callable[[Tensor, Tensor], Tensor], batches: Batches, schedule: Schedule
) -> Fitted:
    """Minimise the mean of `losses(images, labels)` over all of the network's parameters."""
    optimizer, rate = optimizer_of(network.parameters(), schedule)
    average = {name: p.detach().clone() for name, p in network.named_parameters()} if schedule.ema else {}

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        losses(images, labels).mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()

    network.train()
    started = time.process_time()
    memory: dict[str, int] = {}
    for taken, batch in enumerate(batches, start=1):
        if taken < schedule.steps:
            step(*batch)
        else:
            memory = training_memory(network.parameters(), optimizer, partial(step, *batch))
        if average:
            follow(average, dict(network.named_parameters()), schedule.ema, taken)
    if average:
        network.load_state_dict(average, strict=False)
    network.eval()
    return Fitted(time.process_time() - started, memory)


@torch.no_grad()
def accuracy(classify: Callable[[Tensor], Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Share of test images whose class, the largest of `classify(images)` (N, classes), is right."""
    images, labels = test
    return float((classify(images).argmax(dim=1) == labels).double().mean())
