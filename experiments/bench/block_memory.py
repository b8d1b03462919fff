"""Memory of training one block, the others not in memory, against end-to-end training of the same network.

Shapes of the paper's CIFAR experiment: 12 layers, 32x32 images, patches of 4, batches of 128. End to end is the
same network as one block. The paper's model of it is (4P + A)L against (4P + A)L/B (section 3.4): parameters,
gradients and two Adam moments, and activations. Each ratio is meant to stay below 1/B + 0.05.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from ...blocks import BlockObjective, Denoiser, Schedule, build_model
from ...blocks.training import BlockTrainer
from ...config import NoiseSettings, ViTSettings
from ..memory import allocator_peak, training_memory

CUTS = (2, 3, 4, 6)


def measure(hidden_size: int = 192, batch_size: int = 128) -> dict[str, Any]:
    """ratio_b<B> for B in CUTS, by accounting; measured_ratio_b<B>, by the allocator; the parts in bytes."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    parts = {b: of_one_block(b, hidden_size, batch_size) for b in (1, *CUTS)}
    result: dict[str, Any] = {}
    for name, key in (("ratio", "total"), ("measured_ratio", "measured")):
        for b in CUTS:
            result[f"{name}_b{b}"] = round(parts[b][key] / parts[1][key], 4)
    return {
        **result,
        "hidden_size": hidden_size,
        "batch_size": batch_size,
        "end_to_end_bytes": parts[1],
        "block_bytes": {f"b{b}": parts[b] for b in CUTS},
        "seconds": round(time.perf_counter() - started, 1),
    }


def of_one_block(blocks: int, hidden_size: int, batch_size: int) -> dict[str, int]:
    """Bytes by part of training the first of `blocks` blocks; all blocks have the same shape.

    `measured`: parameters, optimiser and what a step allocates at its peak, gradients among it.
    """
    settings = ViTSettings(
        image_size=32, channels=3, patch_size=4, hidden_size=hidden_size, layers=12, blocks=blocks,
        heads=hidden_size // 64 or 1, classes=100,
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(settings, NoiseSettings(), only=0)
    trainer = BlockTrainer(model, 0, Schedule(steps=3, batch_size=batch_size, learning_rate=1e-3))
    step = stepper(model, trainer, batch_size)
    found = training_memory(trainer.part.parameters(), trainer.optimizer, step)
    trainer.optimizer.zero_grad(set_to_none=True)
    found["measured"] = found["parameters"] + found["optimizer"] + allocator_peak(step)
    return found
