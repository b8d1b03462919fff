"""Masked-diffusion language model on Python's own documentation: bits per character, an upper bound."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ....blocks import Denoiser, Schedule
from ....blocks.examples import Examples
from ....blocks.families.masked_lm import MaskedLanguageModelSettings
from ....blocks.masked import MaskedDenoiser
from ....client.data import load_examples
from ....settings import DataSource, NoiseSettings
from .summary import uncut_row

MODEL = MaskedLanguageModelSettings(hidden_size=64, layers=6, blocks=3, sequence_length=64)
NOISE = NoiseSettings()
SCHEDULE = Schedule(steps=200, batch_size=64, learning_rate=3e-3)
HELD_OUT = 256
DRAWS = 4


@cache
def texts() -> tuple[Tensor, Tensor]:
    """Training and held-out sequences (N, T) of the help topics in Python, the last topics held out."""
    cut = load_examples("data", DataSource(source="python-topics"), MODEL, match_contrast=False).targets
    edge = len(cut) - len(cut) // 10
    held_out = cut[edge:]
    chosen = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))[:HELD_OUT]
    return cut[:edge], held_out[chosen]


def bits(model: Denoiser, seed: int) -> list[float]:
    """Bits per character after each block, on the held-out text; the same masks for every model."""
    assert isinstance(model, MaskedDenoiser)
    draws = DRAWS * MODEL.blocks // model.partition.blocks  # as many rates over the whole range
    return model.bits(texts()[1], torch.Generator().manual_seed(0), draws).mean(dim=1).tolist()


def row(seeds: int, on_progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """The bench row; lower is better."""
    text = texts()[0]
    found = uncut_row(
        MODEL, NOISE, Examples(text, text), SCHEDULE, bits, seeds=seeds, on_progress=on_progress
    )
    note = (
        f"bound, not likelihood; sequences of {MODEL.sequence_length} characters of the Python help topics; "
        "the same masks for all models"
    )
    return found | {"note": note}
