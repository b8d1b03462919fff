"""Memory of training one block, the others not in memory, against end-to-end training of the same network.

Shapes of the paper's CIFAR experiment: 12 layers, 32x32 images, patches of 4, batches of 128. End to end is
the same network as one block. The paper's model of it is (4P + A)L against (4P + A)L/B (section 3.4):
parameters, gradients and two Adam moments, and activations. Each ratio is meant to stay below 1/B + 0.05.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...blocks import BlockObjective, Schedule, build_model
from ...blocks.families.vit import ViTSettings
from ...blocks.training import BlockTrainer
from ...settings import NoiseSettings
from ..baselines.end_to_end import PlainViT
from ..memory import allocator_peak, training_memory

LAYERS = 12
CUTS = (2, 3, 4, 6)


def measure(hidden_size: int = 192, batch_size: int = 128) -> dict[str, Any]:
    """ratio_b<B> for B in CUTS, by accounting, and the parts in bytes.

    measured_ratio_b<B> is the same by the allocator; ratio_to_plain_b<B> is against a plain vision
    transformer, which has no modulation and so fewer parameters than the network of one block.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    parts = {b: of_one_block(b, hidden_size, batch_size) for b in (1, *CUTS)}
    plain = of_plain(hidden_size, batch_size)
    checkpointed = of_plain(hidden_size, batch_size, checkpointing=True)
    result: dict[str, Any] = {}
    for name, key, whole in (
        ("ratio", "total", parts[1]),
        ("measured_ratio", "measured", parts[1]),
        ("ratio_to_plain", "total", plain),
    ):
        for b in CUTS:
            result[f"{name}_b{b}"] = round(parts[b][key] / whole[key], 4)
    return {
        **result,
        "hidden_size": hidden_size,
        "batch_size": batch_size,
        "end_to_end_bytes": parts[1],
        "plain_bytes": plain,
        "plain_checkpointed_bytes": checkpointed,
        "block_bytes": {f"b{b}": parts[b] for b in CUTS},
        "seconds": round(time.perf_counter() - started, 1),
    }


def of_one_block(blocks: int, hidden_size: int, batch_size: int) -> dict[str, int]:
    """Bytes by part of training the first of `blocks` blocks; all blocks have the same shape."""
    torch.manual_seed(0)
    settings = ViTSettings(**_sizes(hidden_size), layers=LAYERS, blocks=blocks)
    model = build_model(settings, NoiseSettings(), only=0)
    trainer = BlockTrainer(model, 0, Schedule(steps=3, batch_size=batch_size, learning_rate=1e-3))
    generator = torch.Generator().manual_seed(0)
    step = partial(trainer.step, *_batch(batch_size), BlockObjective(), generator)
    model.freeze_all_but(0)
    return _parts(list(trainer.part.parameters()), trainer.optimizer, step)


def of_plain(hidden_size: int, batch_size: int, checkpointing: bool = False) -> dict[str, int]:
    """Bytes by part of training a plain vision transformer of all layers end to end.

    With `checkpointing` only `measured` has what a layer keeps while it is computed again.
    """
    torch.manual_seed(0)
    plain = PlainViT(**_sizes(hidden_size), layers=LAYERS, checkpointing=checkpointing)
    optimizer = torch.optim.AdamW(plain.parameters())
    images, labels = _batch(batch_size)

    def step() -> None:
        plain.losses(images, labels).mean().backward()
        optimizer.step()

    return _parts(list(plain.parameters()), optimizer, step)


def _parts(
    parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, step: Callable[[], object]
) -> dict[str, int]:
    """`measured`: parameters, optimiser and what a step allocates at its peak, gradients among it."""
    found = training_memory(parameters, optimizer, step)
    optimizer.zero_grad(set_to_none=True)
    return found | {"measured": found["parameters"] + found["optimizer"] + allocator_peak(step)}


def _sizes(hidden_size: int) -> dict[str, Any]:
    return {
        "image_size": 32, "channels": 3, "patch_size": 4, "hidden_size": hidden_size,
        "heads": hidden_size // 32, "classes": 100,
    }  # fmt: skip


def _batch(batch_size: int) -> tuple[Tensor, Tensor]:
    return torch.rand(batch_size, 3, 32, 32), torch.randint(100, (batch_size,))
