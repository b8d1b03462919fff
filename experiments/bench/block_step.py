"""Time of one block's training step against the same layers trained alone in plain PyTorch.

The plain loop has the same layers, as many tokens (a class token where the block has its noisy one), the same
optimiser and clipping, and cross-entropy; no noise level, no modulation. Steps of the two are taken in turns
and the medians compared; one block's step is meant to cost at most 1.10 of the plain one. The same block's step is
timed compiled as well, where the machine has a compiler, to tell whether `pretraining.compile` helps on it.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...blocks import BlockObjective, Schedule, build_model
from ...blocks.families.vit import ViTSettings
from ...blocks.training import BlockTrainer, optimizer_of
from ...settings import NoiseSettings
from ..baselines.end_to_end import PlainViT
from .interleaved_timing import median_seconds

SIZES: dict[str, Any] = {
    "image_size": 32, "channels": 3, "patch_size": 4, "hidden_size": 128, "heads": 4, "classes": 100,
}  # fmt: skip


def measure(
    repeats: int = 15, batch_size: int = 64, layers: int = 12, blocks: int = 3, compiled: bool = True
) -> dict[str, Any]:
    """`ratio_to_plain` of the median seconds of a step; the middle block, on one core."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = torch.rand(batch_size, 3, 32, 32), torch.randint(100, (batch_size,))
    schedule = Schedule(steps=2 * repeats, batch_size=batch_size, learning_rate=1e-3)
    model = build_model(ViTSettings(**SIZES, layers=layers, blocks=blocks), NoiseSettings())
    block = blocks // 2
    trainer = BlockTrainer(model, block, schedule)
    model.freeze_all_but(block).train()
    generator = torch.Generator().manual_seed(0)
    twin = copy.deepcopy(model)
    faster = BlockTrainer(twin, block, replace(schedule, compile=True))
    plain = PlainViT(**SIZES, layers=layers // blocks)
    optimizer, rate = optimizer_of(plain.parameters(), schedule)

    def plain_step() -> None:
        loss = F.cross_entropy(plain(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        rate.step()

    jobs: dict[str, Callable[[], object]] = {
        "block": lambda: trainer.step(images, labels, BlockObjective(), generator),
        "plain": plain_step,
    }
    compiles = compiled and (shutil.which("g++") is not None or torch.cuda.is_available())
    if compiles:
        jobs["compiled"] = lambda: faster.step(images, labels, BlockObjective(), generator)
    median = median_seconds(jobs, repeats)
    return {
        "ratio_to_plain": round(median["block"] / median["plain"], 3),
        "compiled_ratio_to_block": round(median["compiled"] / median["block"], 3) if compiles else None,
        "block_ms": round(1000 * median["block"], 2),
        "plain_ms": round(1000 * median["plain"], 2),
        "repeats": repeats,
        "batch_size": batch_size,
        "tokens": 65,
    }
