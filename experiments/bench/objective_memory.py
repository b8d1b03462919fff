"""What each objective of a pretrained block keeps in memory, beside training the whole model end to end.

The model is a small random BERT of MiniLM's width; what counts are the shapes. Counted are the distinct storages of
what trains, its gradients, Adam's moments, and what autograd keeps for the backward pass (`experiments.memory`).
Weights that do not train are on disk and mapped, the same in all, and not counted.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from ...blocks import BlockObjective, Schedule, build_model
from ...blocks.families import family
from ...blocks.pretrained.small import random_model
from ...blocks.training import BlockTrainer
from ...settings import NoiseSettings
from ..memory import training_memory

SIZES = {"layers": 6, "hidden_size": 384, "heads": 12, "intermediate_size": 1536, "positions": 64}
BLOCKS, TOKENS, BATCH = 3, 32, 32


def measure() -> dict[str, Any]:
    """Bytes by objective and by block, and `<objective>_ratio`: the largest block's, of end-to-end training's."""
    whole = of_block(1, 0, "task")
    result: dict[str, Any] = {"end_to_end": whole}
    for objective in ("task", "denoise", "mixed"):
        each = [of_block(BLOCKS, block, objective) for block in range(BLOCKS)]
        result[objective] = each
        result[f"{objective}_ratio"] = round(max(found["total"] for found in each) / whole["total"], 3)
    return result


def of_block(blocks: int, block: int, objective: Literal["task", "denoise", "mixed"]) -> dict[str, int]:
    """Bytes by part of training all weights of one block; one block of all layers is end to end."""
    kind = family("pretrained-text-classifier").settings
    folder = random_model("encoder", blocks=blocks, **SIZES)
    wanted = {"classes": 20, "sequence_length": TOKENS, "trains": "block", "objective": objective}
    settings = kind.model_validate({"pretrained": str(folder)} | wanted)
    model = build_model(settings, NoiseSettings())
    trainer = BlockTrainer(model, block, Schedule(steps=3, batch_size=BATCH, learning_rate=1e-4))
    model.freeze_all_but(block)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, settings.kind.input_classes or 2, (BATCH, TOKENS), generator=generator)
    labels = torch.randint(20, (BATCH,), generator=generator)
    return training_memory(
        trainer.parameters.values(),
        trainer.optimizer,
        lambda: trainer.step(tokens, labels, BlockObjective(), generator),
    )
