"""A release as its attacker models it: the sum of clipped gradients as a function of what it looks for.

    y(x) = sum_k sum_s f(|g_ks|) g_ks + noise,     g_ks = mean over draws of example k's gradient in local step s

Local steps change the block: the state of step s follows from the model's own earlier steps, without their noise. The
derivative leaves that dependence out, as a step moves the block little; values do not, so a fixed point is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .block_problem import BlockProblem
from .clip_model import ClipModel
from .factors import FactoredGradient, Gradient, State
from .unknowns import Guess, Layout


@dataclass(frozen=True)
class Term:
    """One clipped gradient: its tensors before clipping, and factor and slope of every layer, (L,)."""

    tensors: dict[str, Tensor]
    factors: Tensor
    slopes: Tensor


@dataclass(frozen=True)
class Modelled:
    """A release at one guess; `terms[k][s]`, and the state of the block at every step."""

    vector: Tensor  # (P,)
    terms: list[list[Term]]
    states: list[State]


class ReleaseModel:
    """`rate`: by how much of a step's sum the block moves after it, learning rate over expected batch.

    model = ReleaseModel(layout, ClipModel.of(mechanism), steps=1, rate=0.0)
    found = model.at(guess)
    for name, rows in model.slopes(guess, found, moving):       # tensor by tensor, (K m, size)
        curvature += rows @ rows.T
    """

    def __init__(self, layout: Layout, clip: ClipModel, *, steps: int, rate: float) -> None:
        self.layout, self.clip, self.steps, self.rate = layout, clip, steps, rate
        self.problem: BlockProblem = layout.problem
        self.factored = FactoredGradient(self.problem)
        self.own = {
            name: p.detach() for name, p in self.problem.layers.named_parameters() if name in self.problem.names
        }
        self.layers: dict[str, list[str]] = {}  # as the mechanism divides parameters among modules
        for name in self.problem.names:
            self.layers.setdefault(name.rpartition(".")[0], []).append(name)
        self.place = {name: i for i, own in enumerate(self.layers.values()) for name in own}

    def at(self, guess: Guess, *, moving: bool = True) -> Modelled:
        """The release that this guess would give; `moving`: whether the block changes from step to step."""
        k, per_step = len(guess.flat), self.layout.draws // self.steps
        values = {n: v.view(k, self.steps, per_step, *v.shape[1:]) for n, v in self.layout.draws_of(guess).items()}
        terms: list[list[Term]] = [[] for _ in range(k)]
        states: list[State] = [{}]
        total = {name: torch.zeros_like(p) for name, p in self.own.items()}
        for s in range(self.steps):
            state = states[s]
            found = self.factored.gradient({n: v[:, s].flatten(0, 1) for n, v in values.items()}, state)
            tensors = {name: t.view(k, per_step, *t.shape[1:]).mean(1) for name, t in self._tensors(found).items()}
            squared = torch.stack(
                [
                    torch.stack([tensors[n].flatten(1).square().sum(1) for n in own]).sum(0)
                    for own in self.layers.values()
                ],
                dim=1,
            )  # (K, L)
            factors, slopes = self.clip.factors(squared)
            for i in range(k):
                terms[i].append(Term({n: t[i] for n, t in tensors.items()}, factors[i], slopes[i]))
            for name, t in tensors.items():
                total[name] += torch.tensordot(factors[:, self.place[name]], t, dims=1)
            if s + 1 < self.steps:
                moved = {name: p - self.rate * total[name] for name, p in self.own.items()}
                states.append(moved if moving else {})
        return Modelled(torch.cat([total[n].reshape(-1) for n in self.problem.names]), terms, states)

    def summands(self, guess: Guess) -> list[dict[str, Tensor]]:
        """What each of K examples on its own would add, by tensor; the block stays as it is."""
        found = self.at(guess, moving=False)
        return [
            {
                name: sum((term.factors[self.place[name]] * term.tensors[name] for term in terms), torch.zeros(()))
                for name in self.problem.names
            }
            for terms in found.terms
        ]

    def _tensors(self, found: Gradient) -> dict[str, Tensor]:
        """Gradients (N, *shape) by parameter."""
        tensors: dict[str, Tensor] = {}
        for module, (weight, bias) in self.factored.linear.items():
            part = found.linear.get(module)
            if part is None:
                continue
            if weight:
                tensors[f"{module}.weight"] = part.outputs.mT @ part.inputs
            if bias:
                tensors[f"{module}.bias"] = part.outputs.sum(1)
        tensors |= found.dense
        n = len(next(iter(tensors.values())))
        zeros = {name: p.new_zeros(n, *p.shape) for name, p in self.own.items() if name not in tensors}
        return tensors | zeros

    def slopes(
        self,
        guess: Guess,
        found: Modelled,
        *,
        example: bool,
        draws: bool,
        sketch: dict[str, Tensor],
        dtype: torch.dtype,
    ) -> Iterator[tuple[str, Tensor]]:
        """d release / d unknowns, tensor by tensor: rows (K m, size) of the example's, the draws' or all coordinates.

        `sketch`: for some weights an orthonormal (in, s) with which they are multiplied.
        """
        layout, k = self.layout, len(guess.flat)
        first, last = (0 if example else layout.example), (None if draws else layout.example)
        directions = torch.eye(layout.example + layout.draw, dtype=dtype)[first:last]
        points = layout.points(guess.flat).to(dtype)
        per_step = layout.draws // self.steps
        pairs = []  # of every draw: its factors and their derivatives
        for i in range(k):
            discrete = {n: v[i] for n, v in guess.discrete.items()}
            for j in range(layout.draws):
                pairs.append(
                    self.factored.derivative(
                        lambda p, discrete=discrete: layout.at(p, discrete),
                        points[i, j],
                        directions,
                        found.states[j // per_step],
                    )
                )
        radial = [self._radial(pairs, found, i, j, per_step, dtype) for i in range(k) for j in range(layout.draws)]
        kept, own = (layout.example if example else 0), (layout.draw if draws else 0)
        for name in self.problem.names:
            rows = []
            for i in range(k):
                of_example, of_draws = None, []
                for j in range(layout.draws):
                    term = found.terms[i][j // per_step]
                    at, slope = pairs[i * layout.draws + j]
                    moved = self._moved(name, at, slope, sketch.get(name)) / per_step
                    moved *= term.factors[self.place[name]].to(dtype)
                    value = term.tensors[name].to(dtype)
                    if name in sketch:
                        value = value @ sketch[name].to(dtype)
                    moved += radial[i * layout.draws + j][:, self.place[name], None] * value.reshape(1, -1)
                    shared = moved[:kept]
                    of_example = shared if of_example is None else of_example + shared
                    of_draws.append(moved[kept:])
                assert of_example is not None
                rows.append(torch.cat([of_example, *of_draws] if own else [of_example]))
            yield name, torch.cat(rows)

    def _moved(self, name: str, at: Gradient, slope: Gradient, sketch: Tensor | None) -> Tensor:
        """Derivative of one tensor of one draw's gradient, (m, size)."""
        module, _, kind = name.rpartition(".")
        if name in slope.dense:
            dense: Tensor = slope.dense[name].flatten(1)
            return dense
        if module not in slope.linear:
            any_slope = next(iter(slope.linear.values())).inputs
            return any_slope.new_zeros(len(any_slope), self.own[name].numel())
        a, g = at.linear[module]
        da, dg = slope.linear[module]
        if kind == "bias":
            total: Tensor = dg.sum(1)
            return total
        if sketch is not None:
            s = sketch.to(a.dtype)
            a, da = a @ s, da @ s
        # dW = dg^T a + g^T da as one product over twice the tokens
        left = torch.cat([dg, g.expand(len(da), *g.shape)], dim=1)
        right = torch.cat([a.expand(len(da), *a.shape), da], dim=1)
        return (left.mT @ right).flatten(1)

    def _radial(
        self, pairs: list[tuple[Gradient, Gradient]], found: Modelled, i: int, j: int, per_step: int, dtype: torch.dtype
    ) -> Tensor:
        """What the factor of each layer gains along each direction of one draw, (m, L)."""
        term = found.terms[i][j // per_step]
        at, slope = pairs[i * self.layout.draws + j]
        gained = []
        for module, names in self.layers.items():
            squared: Tensor | float = 0.0
            for name in names:
                value = term.tensors[name].to(dtype)
                if name in slope.dense:
                    squared = squared + 2 * slope.dense[name].flatten(1) @ value.flatten()
                elif module in slope.linear:
                    a, g = at.linear[module]
                    da, dg = slope.linear[module]
                    if name.endswith("bias"):
                        squared = squared + 2 * dg.sum(1) @ value
                    else:
                        along = (dg * (a @ value.T)).sum((1, 2)) + (da * (g @ value)).sum((1, 2))
                        squared = squared + 2 * along
            if isinstance(squared, float):
                squared = torch.zeros(len(next(iter(slope.linear.values())).inputs), dtype=dtype)
            gained.append(squared / per_step)
        by_layer = torch.stack(gained, dim=1)  # (m, L)
        if self.clip.kind != "per-layer":
            by_layer = by_layer.sum(1, keepdim=True).expand_as(by_layer)
        return by_layer * term.slopes.to(dtype)
