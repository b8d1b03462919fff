"""Class-conditional DiT on scikit-learn's digits: Frechet distance to digits that no model has seen.

All models take the same number of sampling steps at the same levels; each step runs one block of ours and all
layers of the end-to-end network.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from ....blocks import Denoiser, Schedule, sample_chain
from ....blocks.examples import Examples
from ....blocks.families.dit import DiTSettings
from ....blocks.frechet import FrechetDistance, classifier_on
from ....client.data import load_examples
from ....settings import DataSource, NoiseSettings
from .summary import uncut_row

MODEL = DiTSettings(patch_size=4, hidden_size=64, layers=6, blocks=3)
NOISE = NoiseSettings(P_mean=-1.2, weight="edm")
SCHEDULE = Schedule(steps=800, batch_size=128, learning_rate=2e-3, ema=0.99)
SAMPLING_STEPS = 18
HELD_OUT = 500
SAMPLES_PER_LABEL = 4  # of the held-out labels, so that generated and held-out classes have equal shares


@cache
def digits() -> tuple[Examples, Examples, FrechetDistance]:
    """Training digits, held-out digits, and the distance, whose classifier has seen all of them."""
    found = load_examples("data", DataSource(source="digits"), MODEL, match_contrast=True)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    distance = classifier_on(found.targets, found.inputs)
    return found[order[HELD_OUT:]], found[order[:HELD_OUT]], distance


def distances(model: Denoiser, seed: int, steps: int = SAMPLING_STEPS) -> list[float]:
    """Frechet distance of the prediction after each block."""
    _, held_out, distance = digits()
    labels = held_out.inputs.repeat(SAMPLES_PER_LABEL)
    generator = torch.Generator().manual_seed(seed)
    chain = sample_chain(model, labels, held_out.targets, generator, steps // model.partition.blocks)
    return [distance(images, held_out.targets) for images in chain]


def row(seeds: int, on_progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """The bench row; lower is better."""
    train_set, held_out, distance = digits()
    floor = distance(train_set.targets, held_out.targets)
    found = uncut_row(MODEL, NOISE, train_set, SCHEDULE, distances, seeds=seeds, on_progress=on_progress)
    note = (
        f"features of a small digit classifier, {HELD_OUT} held-out digits, {SAMPLING_STEPS} sampling steps in "
        f"all models; the training digits themselves are at {floor:.3f}; patches of 4: with patches of 2 the "
        "first trial gave a ratio of 1.16"
    )
    return found | {"note": note}
