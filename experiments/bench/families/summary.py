"""From the three models' trainings and measurements to a bench row."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

import torch

from ....blocks import BlockObjective, Denoiser, Schedule, build_model, train
from ....blocks.build import metric_of
from ....blocks.examples import Examples
from ....blocks.families.dit import DiTSettings
from ....blocks.families.masked_lm import MaskedLanguageModelSettings
from ....settings import NoiseSettings
from ...baselines.single_block_baseline import end_to_end, shallow


def uncut_row(
    model: DiTSettings | MaskedLanguageModelSettings,
    noise: NoiseSettings,
    examples: Examples,
    schedule: Schedule,
    quality: Callable[[Denoiser, int], list[float]],
    *,
    seeds: int,
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    """A row of a family whose end-to-end training is the same network uncut.

    `quality(model, seed)` is the metric after each block on held-out examples.
    """
    started = time.perf_counter()
    kinds = {"ours": build_model, "end_to_end": end_to_end, "shallow": shallow}
    found: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    for seed in range(seeds):
        for kind, build in kinds.items():
            torch.manual_seed(seed)
            network = build(model, noise)
            train(
                network, examples.inputs, examples.targets, objective=BlockObjective(weight=noise.weight),
                schedule=schedule, generator=torch.Generator().manual_seed(seed),
            )  # fmt: skip
            found[kind].append(quality(network, seed))
            on_progress(f"seed {seed} {kind}: {found[kind][-1][-1]:.3f}")
    return {
        "family": model.family,
        "metric": metric_of(model).name,
        **summary(found),
        "steps_per_layer": schedule.steps,
        "seeds": seeds,
        "seconds": time.perf_counter() - started,
    }


def summary(after_each_block: dict[str, list[list[float]]]) -> dict[str, Any]:
    """`after_each_block[kind][seed]` are the measurements after each block; the last is the model's own."""
    final = {kind: [chain[-1] for chain in runs] for kind, runs in after_each_block.items()}
    row: dict[str, Any] = {}
    for kind, values in final.items():
        row[kind] = fmean(values)
        row[f"{kind}_std"] = _deviation(values)
    row["ratio"] = row["ours"] / row["end_to_end"]
    row["after_each_block"] = [fmean(values) for values in zip(*after_each_block["ours"], strict=True)]
    return row


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
