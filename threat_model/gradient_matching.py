"""Gradient matching: the usual reference (Zhu et al. 2019: L2 and L-BFGS; Geiping et al. 2020: cosine and Adam).

An optimiser changes imagined examples until their gradient is the released one. It needs no structure, and so works
on any network; it knows no noise either, and where it ends below the guess without the release it says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from scipy.optimize import nnls
from torch import Tensor

from .prior import GaussianPrior
from .problem import Problem, Values
from .releases import Release


@dataclass(frozen=True, kw_only=True)
class Matching:
    """`attempts` random starts of `iterations` each; the one whose gradient fits best is kept."""

    optimizer: Literal["adam", "lbfgs"] = "lbfgs"
    distance: Literal["l2", "cosine"] = "l2"
    attempts: int = 2
    iterations: int = 300
    learning_rate: float = 0.05
    solved: float = 1e-12  # relative squared distance at which the search ends

    def words(self) -> str:
        return f"{self.attempts} starts of {self.iterations} steps ({self.optimizer}, {self.distance})"


@dataclass(frozen=True)
class Matched:
    """`values` of K examples by field; `residual`: relative distance of their gradient; `steps` taken in all."""

    values: Values
    residual: float
    steps: int


def match(
    problem: Problem,
    release: Release,
    prior: GaussianPrior,
    matching: Matching,
    generator: torch.Generator,
    *,
    labels: Tensor | None = None,
    field: str = "image",
    clip: float | None = None,
) -> Matched:
    """Search for `release.examples` examples; the `field` is that of the prior, other unknowns start at random.

    `labels` (K,): where the attacker knows them; else those that fit best at the start. `clip`: the norm that each
    example's gradient was clipped to, none where it was not.
    """
    best: Matched | None = None
    steps = 0
    for attempt in range(matching.attempts):
        start = _start(problem, release.examples, prior, field, generator)
        chosen = labels if labels is not None else _labels(problem, release, start)
        found = _descend(problem, release, start | {"label": chosen}, matching, field, prior, clip)
        steps += found.steps
        if best is None or found.residual < best.residual:
            best = found
        if best.residual < matching.solved**0.5 or attempt + 1 == matching.attempts:
            break
    assert best is not None
    return Matched(best.values, best.residual, steps)


def _start(problem: Problem, k: int, prior: GaussianPrior, field: str, generator: torch.Generator) -> Values:
    """Random pixels around the prior's mode: images that are alike have gradients that cannot be told apart."""
    values: Values = {}
    for each in problem.fields:
        if each.name == field:
            drawn = torch.rand(k, *prior.shape, generator=generator, dtype=torch.float64)
            values[field] = prior.within((0.5 * (prior.mode + drawn)).reshape(k, -1)).view(k, *prior.shape)
        elif each.nuisance:
            shape = (k, problem.draws, *each.shape)
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            low, high = each.bounds or (-1.0, 1.0)
            values[each.name] = (
                drawn if each.what == "noise" else torch.full(shape, (low + high) / 2).double()
            )
        elif not each.continuous:
            values[each.name] = torch.zeros((k, *each.shape), dtype=torch.long)
        else:
            values[each.name] = torch.zeros((k, *each.shape), dtype=torch.float64)
    return values


def _labels(problem: Problem, release: Release, start: Values) -> Tensor:
    """How often each label occurs, (K,): the counts of mean gradients by label that explain the sum best."""
    classes = next(f.classes for f in problem.fields if f.name == "label") or 1
    k = release.examples
    means = []
    for label in range(classes):
        with torch.no_grad():
            means.append(problem.gradient(start | {"label": torch.full((k,), label)}).mean(0))
    g, target = torch.stack(means), release.vector  # (classes, P)
    # All counts together are k: that decides for labels whose gradient is too small to tell.
    sure = float(target.norm()) * torch.ones(1, classes, dtype=torch.float64)
    counts, _ = nnls(torch.cat([g.T, sure]).numpy(), torch.cat([target, k * sure[0, :1]]).numpy())
    chosen = []
    for _ in range(k):
        chosen.append(int(counts.argmax()))
        counts[chosen[-1]] -= 1
    return torch.tensor(sorted(chosen))


def _descend(
    problem: Problem,
    release: Release,
    values: Values,
    matching: Matching,
    field: str,
    prior: GaussianPrior,
    clip: float | None,
) -> Matched:
    moving = [f.name for f in problem.fields if f.continuous and f.what != "mask"]
    unknown = {name: values[name].clone().requires_grad_(True) for name in moving}
    target = release.vector
    size = float(target.square().sum().clamp_min(1e-300))
    taken = 0

    def distance() -> Tensor:
        g = problem.gradient(values | unknown)
        if clip is not None:  # as the plan says
            g = g * (clip / g.norm(dim=1, keepdim=True).clamp_min(clip))
        total = g.sum(0)
        if matching.distance == "cosine":
            off: Tensor = 1 - (total @ target) / (total.norm() * target.norm()).clamp_min(1e-300)
        else:
            off = (total - target).square().sum() / size
        return off

    if matching.optimizer == "lbfgs":
        optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
            list(unknown.values()), lr=1.0, max_iter=20, history_size=50, line_search_fn="strong_wolfe",
            tolerance_grad=1e-14, tolerance_change=1e-18,
        )  # fmt: skip
    else:
        optimizer = torch.optim.Adam(list(unknown.values()), lr=matching.learning_rate)
    lowest, stalled = float("inf"), 0
    rounds = -(-matching.iterations // 20) if matching.optimizer == "lbfgs" else matching.iterations

    def closure() -> float:
        optimizer.zero_grad()
        loss = distance()
        loss.backward()
        return loss.item()

    for _ in range(rounds):
        loss = optimizer.step(closure)
        taken += 20 if matching.optimizer == "lbfgs" else 1
        with torch.no_grad():
            unknown[field].copy_(prior.within(unknown[field]))
        if not loss < float("inf") or loss < matching.solved:
            break
        stalled = 0 if loss < lowest * (1 - 1e-3) else stalled + 1
        lowest = min(lowest, loss)
        if matching.optimizer == "lbfgs" and stalled >= 3:
            break  # L-BFGS does not come away from here
    with torch.no_grad():
        final = float(distance())
    found = {name: value.detach() for name, value in unknown.items()}
    return Matched(values | found, max(final, 0.0) ** 0.5 if final == final else float("inf"), taken)
