"""Breast cancer's 569 biopsies, 30 numbers each: accuracy on rows that no model has seen, another split a seed.

Gradient boosting stands beside them: on a table of this size it is what people would use.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import fmean, stdev
from typing import Any, cast

import torch

from ....blocks import BlockObjective, Schedule, build_model, train
from ....blocks.examples import Examples
from ....blocks.families.tabular import TabularSettings
from ....client.data import load_examples
from ...baselines.tabular import FTTransformer, accuracy, boosted_accuracy, train_classifier
from ...presets import load_settings
from .summary import summary

OVERRIDES = ("model.layers=6", "noise.P_mean=1.0")
SCHEDULE = Schedule(steps=200, batch_size=64, learning_rate=3e-3)
HELD_OUT = 169


def row(seeds: int, on_progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """The bench row; higher is better."""
    started = time.perf_counter()
    settings = load_settings("tabular-cancer", OVERRIDES)
    model = cast(TabularSettings, settings.model)
    sources = (settings.data.public, settings.data.private)
    parts = [load_examples("data", source, model, match_contrast=False) for source in sources]
    every = Examples(torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts]))
    found: dict[str, list[list[float]]] = {"ours": [], "end_to_end": [], "shallow": []}
    boosted = []
    for seed in range(seeds):
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
        train_set, test_set = every[order[HELD_OUT:]], every[order[:HELD_OUT]]
        torch.manual_seed(seed)
        ours = build_model(model, settings.noise)
        train(
            ours, train_set.inputs, train_set.targets, objective=BlockObjective(), schedule=SCHEDULE,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        found["ours"].append(ours.eval().chain_quality(test_set.inputs, test_set.targets, generator))
        for kind, layers in (("end_to_end", model.layers), ("shallow", model.layers // model.blocks)):
            torch.manual_seed(seed)
            plain = FTTransformer(model, layers)
            train_classifier(plain, train_set, SCHEDULE, torch.Generator().manual_seed(seed))
            found[kind].append([accuracy(plain.eval(), test_set)])
        boosted.append(boosted_accuracy(train_set, test_set, seed))
        last = {kind: runs[-1][-1] for kind, runs in found.items()} | {"boosting": boosted[-1]}
        on_progress(f"seed {seed}: " + ", ".join(f"{kind} {value:.3f}" for kind, value in last.items()))
    return {
        "family": "tabular",
        "metric": "accuracy",
        **summary(found),
        "gradient_boosting": fmean(boosted),
        "gradient_boosting_std": stdev(boosted) if len(boosted) > 1 else 0.0,
        "steps_per_layer": SCHEDULE.steps,
        "seeds": seeds,
        "seconds": time.perf_counter() - started,
        "note": f"{HELD_OUT} rows held out, another draw a seed; boosting is scikit-learn's, as it comes",
    }
