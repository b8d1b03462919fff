"""Looped text model: one denoising pass a step against back-propagation through all iterations, equal time.

All models get the processor seconds that the latter takes for its steps: the cheaper a step, the more of
them fit.
The shallow control has the same layers, without the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from ....blocks import BlockObjective, Schedule, build_model, train
from ....blocks.families.recurrent_lm import RecurrentLanguageModelSettings
from ....settings import NoiseSettings
from ...baselines.language import Llama, LoopedLlama, train_end_to_end
from .ar_lm import bits, chain_bits
from .summary import summary
from .topics import Part, topics

MODEL = RecurrentLanguageModelSettings(hidden_size=64, layers=8, recurrences=8)
NOISE = NoiseSettings(P_mean=2.0)
BPTT = Schedule(steps=100, batch_size=16, learning_rate=8e-3)
TRIAL_STEPS = 20  # to learn what a step costs

# Trains afresh for so many steps; returns processor seconds, and bits per character as a function.
Fit = Callable[[int, int], tuple[float, Callable[[], list[float]]]]


def fits(part: Part) -> dict[str, Fit]:
    text, held_out = topics(MODEL, part)

    def ours(seed: int, steps: int) -> tuple[float, Callable[[], list[float]]]:
        torch.manual_seed(seed)
        model, generator = build_model(MODEL, NOISE), torch.Generator().manual_seed(seed)
        schedule = replace(BPTT, steps=steps)
        started = time.process_time()
        train(model, text, text, objective=BlockObjective(), schedule=schedule, generator=generator)
        return time.process_time() - started, lambda: chain_bits(model, held_out)

    def plain(seed: int, steps: int, looped: bool) -> tuple[float, Callable[[], list[float]]]:
        torch.manual_seed(seed)
        model = LoopedLlama(MODEL) if looped else Llama(MODEL, MODEL.layers)
        generator = torch.Generator().manual_seed(seed)
        seconds = train_end_to_end(model, text, replace(BPTT, steps=steps), generator)
        return seconds, lambda: [bits(model, held_out)]

    return {
        "end_to_end": lambda seed, steps: plain(seed, steps, looped=True),
        "ours": ours,
        "shallow": lambda seed, steps: plain(seed, steps, looped=False),
    }


def row(
    seeds: int, on_progress: Callable[[str], None] = lambda _: None, part: Part = "test"
) -> dict[str, Any]:
    """The bench row; lower is better. The learning rate was chosen on `part="validation"`, one seed."""
    started = time.perf_counter()
    kinds = fits(part)
    found: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    taken: dict[str, list[int]] = {kind: [] for kind in kinds}
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}
    for seed in range(seeds):
        for kind, fit in kinds.items():
            steps = BPTT.steps
            if kind != "end_to_end":
                steps = round(spent["end_to_end"][-1] / (fit(seed, TRIAL_STEPS)[0] / TRIAL_STEPS))
            seconds, measure = fit(seed, steps)
            found[kind].append(measure())
            taken[kind].append(steps)
            spent[kind].append(seconds)
            on_progress(
                f"recurrent-lm seed {seed} {kind}: {found[kind][-1][-1]:.3f}, {steps} steps, {seconds:.0f} s"
            )
    return {
        "family": "recurrent-lm",
        "metric": "bits_per_character",
        **summary(found),
        "steps_per_layer": round(fmean(taken["ours"])),
        "steps_end_to_end": BPTT.steps,
        "steps_shallow": round(fmean(taken["shallow"])),
        "training_seconds": {kind: fmean(values) for kind, values in spent.items()},
        "seeds": seeds,
        "seconds": time.perf_counter() - started,
        "note": f"equal processor time; exact likelihood; {MODEL.recurrences} recurrences; end to end is "
        "back-propagation through all of them; shallow is the same layers without a loop",
    }
