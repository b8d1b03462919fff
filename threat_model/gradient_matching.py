"""Gradient matching: the usual reference (Zhu et al. 2019: L2 and L-BFGS; Geiping et al. 2020: cosine and Adam).

An optimiser changes imagined examples until their gradient is the released one. It needs no structure, and so works
on any network; it knows no noise either, and where it ends below the guess without the release it says nothing.

Two things make it strong on sums of several examples: the features that enter a known last layer, which come out
example by example (`last_layer`) and are matched too, and Gauss-Newton at the end (`gauss_newton`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from scipy.optimize import nnls
from torch import Tensor

from . import gauss_newton
from .module_problem import ModuleProblem
from .prior import GaussianPrior
from .problem import Problem, Values
from .releases import Release

_LIKELY = 200  # features of images near the prior's mode, from which the search for features starts
_TOLD_APART = 10.0  # weight of the features beside the gradient


@dataclass(frozen=True, kw_only=True)
class Matching:
    """`attempts` random starts of `iterations` each; the one whose gradient fits best is kept.

    `distance`: "tensors" is L2 with each tensor's gradient over its own norm. `newton`: steps of Gauss-Newton at the
    end, where the Jacobian fits into memory and nothing was clipped.
    """

    optimizer: Literal["adam", "lbfgs"] = "lbfgs"
    distance: Literal["l2", "tensors", "cosine"] = "l2"
    attempts: int = 2
    iterations: int = 300
    learning_rate: float = 0.05
    newton: int = 0
    solved: float = 1e-12  # relative squared distance at which the search ends

    def words(self) -> str:
        last = f", then {self.newton} of Gauss-Newton" if self.newton else ""
        return f"{self.attempts} starts of {self.iterations} steps ({self.optimizer}, {self.distance}){last}"


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
        features = None
        if any(each.name == "label" for each in problem.fields):
            chosen = labels if labels is not None else _labels(problem, release, start)
            start = start | {"label": chosen}
            features = None if clip is not None else _features(problem, release, chosen, prior, generator)
        search = _Search(problem, release, matching, field, prior, clip, features)
        found = search.descend(start)
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


def _features(
    problem: Problem, release: Release, labels: Tensor, prior: GaussianPrior, generator: torch.Generator
) -> Tensor | None:
    """Features (K, F) of the examples, where the network's last layer is known and shows them."""
    layer = problem.last_layer if isinstance(problem, ModuleProblem) else None
    if layer is None or len(labels) < 2:
        return None
    assert isinstance(problem, ModuleProblem)
    gradient = problem.tensors(release.vector)[f"{problem.head}.weight"]
    drawn = torch.rand(_LIKELY, *prior.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        likely = problem.features(
            prior.within((0.5 * (prior.mode + drawn)).reshape(_LIKELY, -1)).view_as(drawn)
        )
    return layer.unmixed(gradient, labels, likely, generator)


@dataclass(frozen=True)
class _Search:
    problem: Problem
    release: Release
    matching: Matching
    field: str
    prior: GaussianPrior
    clip: float | None
    features: Tensor | None

    @property
    def moving(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.problem.fields if f.continuous and f.what != "mask")

    def weights(self) -> Tensor:
        """Of the coordinates of the gradient, (P,): one over its norm, or over that of each tensor."""
        target = self.release.vector
        if self.matching.distance != "tensors":
            alike: Tensor = torch.ones_like(target) / target.norm().clamp_min(1e-150)
            return alike
        parts = self.problem.tensors(target).values()
        return torch.cat([(1 / t.norm().clamp_min(1e-150)).expand(t.numel()) for t in parts])

    def off_features(self, values: Values) -> Tensor:
        """What the features lack, (K F,), relative; weighed up, as they tell each example apart."""
        assert isinstance(self.problem, ModuleProblem)
        assert self.features is not None
        off = self.problem.features(values[self.field]) - self.features
        weighed: Tensor = (_TOLD_APART / float(self.features.norm()) * off).flatten()
        return weighed

    def descend(self, values: Values) -> Matched:
        problem, matching = self.problem, self.matching
        unknown = {name: values[name].clone().requires_grad_(True) for name in self.moving}
        target, weights = self.release.vector, self.weights()
        taken = 0

        def distance() -> Tensor:
            g = problem.gradient(values | unknown)
            if self.clip is not None:  # as the plan says
                g = g * (self.clip / g.norm(dim=1, keepdim=True).clamp_min(self.clip))
            total = g.sum(0)
            if matching.distance == "cosine":
                off: Tensor = 1 - (total @ target) / (total.norm() * target.norm()).clamp_min(1e-300)
            else:
                off = ((total - target) * weights).square().sum()
            return off if self.features is None else off + self.off_features(unknown).square().sum()

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
            if matching.optimizer == "adam":  # L-BFGS would take a step that was cut off for curvature
                self._within(unknown)
            if not loss < float("inf") or loss < matching.solved:
                break
            stalled = 0 if loss < lowest * (1 - 1e-3) else stalled + 1
            lowest = min(lowest, loss)
            if matching.optimizer == "lbfgs" and stalled >= 3:
                break  # L-BFGS does not come away from here
        self._within(unknown)
        found = values | {name: value.detach() for name, value in unknown.items()}
        found = self._refined(found)
        with torch.no_grad():
            unknown = {name: found[name] for name in unknown}
            final = float(distance())
        return Matched(found, max(final, 0.0) ** 0.5 if final == final else float("inf"), taken)

    def _within(self, unknown: Values) -> None:
        with torch.no_grad():
            unknown[self.field].copy_(self.prior.within(unknown[self.field]))

    def _refined(self, values: Values) -> Values:
        k = self.release.examples
        unknowns = sum(values[name].numel() // k for name in self.moving)
        finite = all(bool(values[name].isfinite().all()) for name in self.moving)
        if not self.matching.newton or self.clip is not None or not finite:
            return values
        if not gauss_newton.affordable(self.problem, k, unknowns):
            return values
        weights, more, jacobian = self.weights().clone(), None, None
        if self.features is not None:
            assert isinstance(self.problem, ModuleProblem)
            for name, part in self.problem.tensors(weights).items():
                if name.startswith(f"{self.problem.head}."):
                    part.zero_()  # the features say all that these do
            more, jacobian = self.off_features, self._features_jacobian
        residuals = gauss_newton.Residuals(
            self.problem, self.release.vector, weights, self.moving, more, jacobian
        )
        bounds = {} if self.prior.bounds is None else {self.field: self.prior.bounds}
        return gauss_newton.descend(residuals, values, bounds, self.matching.newton, self.matching.solved)

    def _features_jacobian(self, values: Values) -> Tensor:
        """(K n, K F): each example's features depend on it alone."""
        assert isinstance(self.problem, ModuleProblem)
        assert self.features is not None
        own = self.problem.features_jacobian(values[self.field]) * (_TOLD_APART / float(self.features.norm()))
        every: Tensor = torch.block_diag(*own.float())
        return every
