"""LM-MAP on trained blocks: sums of two and four examples, four local steps; under noise beside its prediction."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....settings.load import validated
from ....threat_model.clip_model import ClipModel
from ....threat_model.closeness import EXACT_IMAGE, closeness
from ....threat_model.intervals import Array
from ....threat_model.library import Library
from ....threat_model.lm_map import LMMAP, Budget, Reconstruction
from ....threat_model.metrics import matched
from ....threat_model.prediction import information
from ....threat_model.release_model import ReleaseModel, step_rate
from ....threat_model.releases import Release, clip_of, released
from ....threat_model.starts import Starts
from ....threat_model.subject import Subject
from ....threat_model.unknowns import Layout
from ...presets import load_settings
from ...simulation.preparation import prepare

_SUMS = {1: 8, 2: 6, 4: 4}  # examples of a sum -> sums a block and seed
# Noise -> starts: the lower it is, the narrower are the modes, and of fewer starts more end in that of a wrong label.
_NOISE = {0.01: 24, 0.03: 8, 0.1: 8, 0.3: 8}
_CASES = 6  # a block and seed
_BUDGET = Budget(iterations=30, short=10, finalists=3, library=2000)


def measure(seeds: int) -> dict[str, Any]:
    """Shares of exact images and median seconds; `noise_gap_db`: by how much less than predicted was found, at the
    multiplier where that is most."""
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    gaps: dict[float, list[float]] = {z: [] for z in _NOISE}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            digits = _subject(seed, Path(folder) / "digits")
            steps = _subject(seed, Path(folder) / "steps", ["training.local_steps=4"])
            for block in digits.blocks:
                for k, cases in _SUMS.items():
                    _exact(found, f"lm_map_k{k}", digits, block, k, cases)
                _exact(found, "local_steps_k1", steps, block, 1, _CASES)
                for z, own in _gaps(digits, block).items():
                    gaps[z] += own
    figures: dict[str, Any] = {
        key: float(np.mean(v) if key.endswith("_exact") else np.median(v)) for key, v in found.items()
    }
    by_noise = {f"{z:g}": float(np.mean(values)) for z, values in gaps.items()}
    return figures | {"noise_gap_db": max(by_noise.values()), "noise_gap_db_by_noise": by_noise}


def _subject(seed: int, folder: Path, changed: Sequence[str] = ()) -> Subject:
    """A prepared run of the digits preset: its blocks are trained on public data."""
    settings = load_settings("digits", changed)
    run = prepare(validated(type(settings), settings.model_dump() | {"seed": seed}), folder)
    return Subject.of(run, seed=seed)


def _model(subject: Subject, block: int) -> ReleaseModel:
    training, mechanism = subject.plan.training, subject.mechanism(block)
    layout = Layout(subject.problem(block), subject.public, training.noise_draws * training.local_steps)
    return ReleaseModel(
        layout, ClipModel.of(mechanism), steps=training.local_steps, rate=step_rate(mechanism)
    )


def _scores(model: ReleaseModel, found: Reconstruction, truth: Tensor) -> Array:
    values = model.layout.values(found.guess)["image"]
    order = torch.from_numpy(matched(values.numpy(), truth.numpy()))
    return closeness(model.problem.by_name["image"], values[order], truth)


def _exact(found: dict[str, list[float]], key: str, subject: Subject, block: int, k: int, cases: int) -> None:
    model = _model(subject, block)
    for case in range(cases):
        victims = subject.victims(k, key, block, case)
        release = released(subject, block, victims, key, case, noisy=False)
        started = time.perf_counter()
        attack = LMMAP(model, release, Budget())
        result = attack.run(Starts(attack, release, subject.generator(key, block, case)))
        found.setdefault(f"{key}_seconds", []).append(time.perf_counter() - started)
        scores = _scores(model, result, model.problem.values_of(victims)["image"])
        found.setdefault(f"{key}_exact", []).extend(float(s >= EXACT_IMAGE) for s in scores)


def _gaps(subject: Subject, block: int) -> dict[float, list[float]]:
    """Predicted less found PSNR, of gradients of the size of the clip: shorter ones give away less."""
    model = _model(subject, block)
    layout, bound = model.layout, clip_of(subject.mechanism(block))
    model.clip = ClipModel(kind="automatic", bound=bound)
    library = Library(model, subject.public, _BUDGET.library, subject.generator("library", block))
    gaps: dict[float, list[float]] = {z: [] for z in _NOISE}
    for case in range(_CASES):
        victims = subject.victims(1, "gap", block, case)
        truth = model.problem.sample(model.problem.values_of(victims), subject.generator("gap", block, case))
        guess = layout.guess(truth)
        clean = Release(model.at(guess).vector, 1, 1, 0.0)
        expected = information(model, guess)
        for z, own in gaps.items():
            release = clean.noised(z * bound, subject.generator("gap noise", block, case, z))
            attack = LMMAP(model, release, replace(_BUDGET, attempts=_NOISE[z]))
            result = attack.run(Starts(attack, release, subject.generator("gap", block, case, z), library))
            predicted = -10 * float(expected.errors(z * bound)["image"].log10())
            own.append(predicted - float(_scores(model, result, truth["image"])[0]))
    return gaps
