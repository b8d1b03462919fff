"""Hourly passers-by in Auckland, the next 20 hours from 180: CRPS and MASE on the last fifth.

A stride of 20 hours lets windows start at every fourth hour of the day and on any day of the week, which the
net has to tell from the values.

All diffusion models take the same number of sampling steps at the same levels; each step runs one block of
ours and all layers of the end-to-end network.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from ....blocks import BlockObjective, Denoiser, Schedule, build_model, sample_chain, train
from ....blocks.examples import Examples
from ....blocks.families.forecaster import ForecasterSettings
from ....blocks.forecast_metrics import mase, seasonal_naive
from ....client.data.series.load import Part, load_series
from ....settings import DataSource, NoiseSettings
from ...baselines.forecasting import QuantileForecaster, quantile_score, train_quantiles, uncut

MODEL = ForecasterSettings(
    context_length=180, horizon=20, patch_size=20, hidden_size=48, layers=6, blocks=3, features="prefix"
)
# The law at which the end-to-end network did best on the validation part.
NOISE = NoiseSettings(P_mean=0.7, P_std=1.0, sigma_min=0.03, sigma_max=20.0, sigma_data=1.0, weight="edm")
SCHEDULE = Schedule(steps=600, batch_size=64, learning_rate=5e-3, noise_draws=2)
SAMPLING_STEPS = 24
SAMPLES = 32
WINDOWS = 500
DAY, WEEK = 24, 168

Found = dict[str, list[float]]


@cache
def windows(part: Part) -> Examples:
    """All windows of a part of the time; of the test a fixed sample."""
    found = Examples(*load_series("data", DataSource(source="pedestrians"), MODEL, part))
    if part == "train":
        return found
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:WINDOWS]]


def diffusion(model: Denoiser, seed: int, part: Part) -> Found:
    """Train, then CRPS after each block and the MASE of the samples' median."""
    data, held_out = windows("train"), windows(part)
    generator = torch.Generator().manual_seed(seed)
    train(
        model, data.inputs, data.targets,
        objective=BlockObjective(weight=NOISE.weight), schedule=SCHEDULE, generator=generator,
    )  # fmt: skip
    steps = SAMPLING_STEPS // model.partition.blocks
    chain = sample_chain(model, held_out.inputs, held_out.targets, generator, steps, draws=SAMPLES)
    median = chain[-1].view(-1, SAMPLES, *held_out.targets.shape[1:]).quantile(0.5, dim=1)
    crps = [float(model.score(samples, held_out.targets).mean()) for samples in chain]
    return {"crps": crps, "mase": [daily_mase(median, held_out)]}


def quantiles(seed: int, part: Part) -> Found:
    """The same figures of the plain quantile forecaster; the same learning rate is its best too."""
    data, held_out = windows("train"), windows(part)
    model = QuantileForecaster(MODEL)
    train_quantiles(model, data.inputs, data.targets, SCHEDULE, torch.Generator().manual_seed(seed))
    found = model(held_out.inputs)
    crps = quantile_score(found, held_out.targets, model.levels).mean()
    return {"crps": [float(crps)], "mase": [daily_mase(found[:, found.shape[1] // 2], held_out)]}


def daily_mase(forecast: Tensor, held_out: Examples) -> float:
    """Mean over the windows whose context does not repeat itself."""
    return float(mase(forecast, held_out.targets, held_out.inputs, DAY).nanmean())


def row(
    seeds: int, on_progress: Callable[[str], None] = lambda _: None, part: Part = "test"
) -> dict[str, Any]:
    """The bench row; lower is better. What was tuned was tuned on `part="validation"`."""
    started = time.perf_counter()
    kinds: dict[str, Callable[[int], Found]] = {
        "ours": lambda seed: diffusion(build_model(MODEL, NOISE), seed, part),
        "end_to_end": lambda seed: diffusion(uncut(MODEL, NOISE, MODEL.layers), seed, part),
        "shallow": lambda seed: diffusion(uncut(MODEL, NOISE, MODEL.layers // MODEL.blocks), seed, part),
        "quantile": lambda seed: quantiles(seed, part),
    }
    runs: dict[str, list[Found]] = {kind: [] for kind in kinds}
    for seed in range(seeds):
        for kind, measure in kinds.items():
            torch.manual_seed(seed)
            runs[kind].append(measure(seed))
            last = runs[kind][-1]
            on_progress(
                f"forecaster seed {seed} {kind}: crps {last['crps'][-1]:.4f} mase {last['mase'][-1]:.4f}"
            )
    crps = {kind: [run["crps"][-1] for run in found] for kind, found in runs.items()}
    scaled = {kind: fmean(run["mase"][-1] for run in found) for kind, found in runs.items()}
    mean = {kind: fmean(values) for kind, values in crps.items()}
    spread = {kind: stdev(values) if seeds > 1 else 0.0 for kind, values in crps.items()}
    held_out = windows(part)
    naive = seasonal_naive(held_out.inputs, MODEL.horizon, WEEK)
    naive_mase = daily_mase(naive, held_out)
    return {
        "family": "forecaster",
        "metric": "crps",
        **{kind: mean[kind] for kind in ("ours", "end_to_end", "shallow")},
        **{f"{kind}_std": spread[kind] for kind in ("ours", "end_to_end", "shallow")},
        "ratio": mean["ours"] / mean["end_to_end"],
        "after_each_block": [fmean(v) for v in zip(*(run["crps"] for run in runs["ours"]), strict=True)],
        "mase": scaled["ours"],
        "mase_end_to_end": scaled["end_to_end"],
        "mase_shallow": scaled["shallow"],
        "mase_ratio": scaled["ours"] / scaled["end_to_end"],
        "quantile_crps": mean["quantile"],
        "quantile_mase": scaled["quantile"],
        "steps_per_layer": SCHEDULE.steps,
        "seeds": seeds,
        "seconds": time.perf_counter() - started,
        "note": f"{WINDOWS} windows after the training's time; CRPS of {SAMPLES} samples in units of the "
        f"context's deviation, MASE by the day-ago error; a week ago again: MASE {naive_mase:.3f}",
    }
