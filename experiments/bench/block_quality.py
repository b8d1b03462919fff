"""Accuracy of a classifier trained block by block against the same layers trained end to end.

12 layers of width 128 in 3 blocks, on the two image sets of `image_sets`. Equal steps per layer: the
end-to-end network takes as many optimiser steps as each block, with the same batches, optimiser and learning
rate. `shallow` is the control that the paper omits: one block's depth, trained end to end.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...blocks import BlockObjective, Denoiser, Schedule, build_model, sample_chain
from ...blocks.training import BlockTrainer
from ...config import NoiseSettings, ViTSettings
from ..baselines.diffusion_blocks import PublishedViT
from ..baselines.end_to_end import PlainViT
from ..baselines.forward_forward import ForwardForward
from ..baselines.training import accuracy, fit
from .image_sets import SETS, ImageSet

LAYERS, BLOCKS = 12, 3
NOISE = NoiseSettings(sigma_min=0.3, partition="equi-information")
SCHEDULES = {
    "digits": Schedule(steps=400, batch_size=64, learning_rate=1e-3),
    "mnist": Schedule(steps=375, batch_size=128, learning_rate=1e-3),  # 12 epochs of 4,000 images
}
NOISE_DRAWS = 4

Result = dict[str, list[float]]
Method = Callable[[ImageSet, Schedule, int], Result]


def ours(data: ImageSet, schedule: Schedule, seed: int) -> Result:
    """Every block trained alone; accuracy after each in the chain, and what each reads off the image."""
    generator = seeded(seed)
    model = build_model(ViTSettings(**data.sizes, layers=LAYERS, blocks=BLOCKS), NOISE)
    trainers = [BlockTrainer(model, b, replace(schedule, noise_draws=NOISE_DRAWS)) for b in range(BLOCKS)]
    model.train()
    for images, labels in data.split.batches(schedule, generator):
        for b, trainer in enumerate(trainers):
            model.freeze_all_but(b)
            trainer.step(images, labels, BlockObjective(), generator)
    model.eval()
    return {"after_each_block": chain(model, *data.split.test, generator), **probes(model, data, generator)}


def chain(model: Denoiser, images: Tensor, labels: Tensor, generator: torch.Generator) -> list[float]:
    """Accuracy after each block."""
    return [right(p, labels) for p in sample_chain(model, images, labels, generator)]


@torch.no_grad()
def probes(model: Denoiser, data: ImageSet, generator: torch.Generator) -> Result:
    """Whether a block reads its image: accuracy without z, with shuffled images, how often a wrong z wins."""
    images, labels = data.split.test
    found: Result = {"without_z": [], "follows_wrong_z": []}
    wrong = (labels + torch.randint(1, data.sizes["classes"], labels.shape, generator=generator)) % 10
    clean = model.clean(wrong)
    for block, level in model.partition.midpoints():
        context, levels = model.context(block, images), torch.full((len(labels),), level)
        nothing = model.prior(clean.shape, level, generator)
        found["without_z"].append(right(model.predict(block, nothing, levels, context), labels))
        z = model.corrupt(clean, replace(model.draw(block, wrong, generator), level=levels))
        found["follows_wrong_z"].append(right(model.predict(block, z, levels, context), wrong))
    shuffled = images[torch.randperm(len(images), generator=generator)]
    return found | {"images_shuffled": chain(model, shuffled, labels, generator)}


def right(prediction: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest entry is the label's."""
    return accuracy(lambda images: images, (prediction, labels))


def plain(data: ImageSet, schedule: Schedule, seed: int, layers: int = LAYERS) -> Result:
    """End to end."""
    generator = seeded(seed)
    network = PlainViT(**data.sizes, layers=layers)
    fit(network, network.losses, data.split.batches(schedule, generator), schedule)
    return {"after_each_block": [accuracy(network, data.split.test)]}


def shallow(data: ImageSet, schedule: Schedule, seed: int) -> Result:
    """End to end, one block's depth."""
    return plain(data, schedule, seed, LAYERS // BLOCKS)


def forward_forward(data: ImageSet, schedule: Schedule, seed: int) -> Result:
    """Every layer takes `steps` steps of its own goodness."""
    generator = seeded(seed)
    network = ForwardForward(PlainViT(**data.sizes, layers=LAYERS), generator)
    fit(network, network.losses, data.split.batches(schedule, generator), schedule)
    return {"after_each_block": [accuracy(network, data.split.test)]}


def as_published(data: ImageSet, schedule: Schedule, seed: int) -> Result:
    """One block a step, `steps` each, all of them training the shared parts."""
    generator = seeded(seed)
    network = PublishedViT(**data.sizes, layers=LAYERS, blocks=BLOCKS, generator=generator)
    longer = replace(schedule, steps=BLOCKS * schedule.steps)
    fit(network, network.losses, data.split.batches(longer, generator), longer)
    images, labels = data.split.test
    with torch.no_grad():
        return {"after_each_block": [right(p, labels) for p in network.chain(images)]}


def seeded(seed: int) -> torch.Generator:
    """A generator for batches and noise; initial weights are drawn from the global one."""
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


METHODS: dict[str, Method] = {"accuracy": ours, "end_to_end": plain, "shallow": shallow}
OTHERS: dict[str, Method] = {"forward_forward": forward_forward, "as_published": as_published}


def measure(
    seeds: int = 3,
    others: bool = False,
    sets: tuple[str, ...] = ("digits", "mnist"),
    on_progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """<set>_<method> and <set>_<method>_std over seeds, probes by block, `worst_chain_drop` in points.

    The drop is the best block of a chain minus its last, the worst of all seeds and sets. `others` adds
    Forward-Forward and DiffusionBlocks as published.
    """
    torch.set_num_threads(1)
    result: dict[str, Any] = {"seeds": seeds, "layers": LAYERS, "blocks": BLOCKS}
    drops, seconds = [], {}
    for name in sets:
        data, schedule = SETS[name](), SCHEDULES[name]
        result[f"{name}_steps_per_layer"] = schedule.steps
        for method, run in (METHODS | (OTHERS if others else {})).items():
            started, runs = time.perf_counter(), []
            for seed in range(seeds):
                runs.append(run(data, schedule, seed))
                on_progress(f"{name} {method} seed {seed}: {100 * runs[-1]['after_each_block'][-1]:.1f}%")
            seconds[f"{name}_{method}"] = round(time.perf_counter() - started, 1)
            last = [r["after_each_block"][-1] for r in runs]
            result[f"{name}_{method}"] = round(statistics.mean(last), 4)
            result[f"{name}_{method}_std"] = round(statistics.pstdev(last), 4)
            if len(runs[0]["after_each_block"]) > 1:
                for key in runs[0]:
                    columns = zip(*(r[key] for r in runs), strict=True)
                    result[f"{name}_{method}_{key}"] = [round(statistics.mean(c), 4) for c in columns]
            if method == "accuracy":
                drops += [100 * (max(r["after_each_block"]) - r["after_each_block"][-1]) for r in runs]
    return result | {"worst_chain_drop": round(max(drops), 3), "seconds": seconds}
