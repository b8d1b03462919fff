"""What the cut, the noise, the loss weight and the features are worth: one choice changed at a time.

The base is a family's preset, trained on its public data and judged on the held-out fifth. Every row changes one
setting of the base; `after_each_block` and `chain_drop` (the best block minus the last, in the metric's unit)
tell whether each block adds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from ...blocks.build import metric_of
from ..presets import load_settings
from ..simulation.preparation import public_model, read_inputs

# Preset -> what makes it deep enough for its blocks to differ, in minutes.
BASES: dict[str, tuple[str, ...]] = {
    "digits": ("model.layers=6", "model.hidden_size=64", "pretraining.steps=300", "pretraining.ema=0.99"),
    "ar-text": ("pretraining.steps=200", "data.test_examples=500"),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "base": (),
    "partition: uniform in log sigma": ("noise.partition=uniform",),
    "partition: uniform in sigma": ("noise.partition=uniform-linear",),
    "partition: equi-information": ("noise.partition=equi-information",),
    "overlap 0": ("noise.overlap=0",),
    "overlap 0.2": ("noise.overlap=0.2",),
    "P_mean -1.2, the paper's": ("noise.P_mean=-1.2",),
    "P_mean 0": ("noise.P_mean=0",),
    "P_mean 1": ("noise.P_mean=1",),
    "P_std 0.8": ("noise.P_std=0.8",),
    "loss weight: EDM's": ("noise.weight=edm",),
    "features: raw": ("model.features=raw",),
    "features: prefix": ("model.features=prefix",),
    "blocks one after another from their own start": ("pretraining.schedule=sequential",),
    "blocks stacked": ("pretraining.schedule=stacked",),
}


def measure(
    seeds: int = 3,
    presets: tuple[str, ...] = tuple(BASES),
    on_progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """By preset: `metric`, the `best` choice, and `rows` of mean, std, after_each_block and chain_drop by choice."""
    torch.set_num_threads(1)
    return {"seeds": seeds, **{preset: _preset(preset, seeds, on_progress) for preset in presets}}


def _preset(preset: str, seeds: int, on_progress: Callable[[str], None]) -> dict[str, Any]:
    metric = metric_of(load_settings(preset).model)
    sign = 1 if metric.higher_is_better else -1
    rows: dict[str, dict[str, Any]] = {}
    for choice, change in CHOICES.items():
        chains = [_chain(preset, (*BASES[preset], *change, f"seed={seed}")) for seed in range(seeds)]
        last = [chain[-1] for chain in chains]
        rows[choice] = {
            "mean": round(statistics.mean(last), 4),
            "std": round(statistics.pstdev(last), 4),
            "after_each_block": [round(statistics.mean(values), 4) for values in zip(*chains, strict=True)],
            "chain_drop": round(max(max(sign * (v - c[-1]) for v in c) for c in chains), 4),
        }
        on_progress(f"{preset}, {choice}: {rows[choice]}")
    best = max(rows, key=lambda choice: sign * rows[choice]["mean"])
    return {"metric": metric.name, "best": best, "rows": rows}


def _chain(preset: str, overrides: tuple[str, ...]) -> list[float]:
    settings = load_settings(preset, overrides)
    inputs = read_inputs(settings)
    model = public_model(settings, inputs.public_train, lambda step: None)
    test, generator = inputs.public_test, torch.Generator().manual_seed(settings.seed)
    return model.chain_quality(test.inputs, test.targets, generator)
