"""A release as its attacker models it: the sum of clipped gradients as a function of what it looks for.

    y(x) = sum_k sum_s f(|g_ks|) g_ks + noise,     g_ks = mean over draws of example k's gradient in local step s

Local steps change the block: the state of step s follows from the model's own earlier steps, without their noise. The
derivative leaves that dependence out, as a step moves the block little; values do not, so a fixed point is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..privacy.dp_sgd import DPSGD
from ..privacy.secure_step import SecureStep
from .block_problem import BlockProblem
from .clip_model import ClipModel
from .factors import FactoredGradient, Gradient, State
from .rows import DenseRows, Rows, WeightRows, inner
from .unknowns import Guess, Layout

Moves = Literal["example", "draws", "all"]


def step_rate(mechanism: DPSGD | SecureStep) -> float:
    """By how much of a step's sum the block moves after it."""
    if isinstance(mechanism, SecureStep):
        return 0.0
    return mechanism.learning_rate / mechanism.expected_batch_size


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
    curvature, slope = model.normal(guess, found, misfit, weights)
    """

    def __init__(self, layout: Layout, clip: ClipModel, *, steps: int, rate: float) -> None:
        self.layout, self.clip, self.steps, self.rate = layout, clip, steps, rate
        self.problem: BlockProblem = layout.problem
        self.factored = FactoredGradient(self.problem)
        self.own = {
            name: p.detach()
            for name, p in self.problem.layers.named_parameters()
            if name in self.problem.names
        }
        self.layers: dict[str, list[str]] = {}  # as the mechanism divides parameters among modules
        for name in self.problem.names:
            self.layers.setdefault(name.rpartition(".")[0], []).append(name)
        self.place = {name: i for i, own in enumerate(self.layers.values()) for name in own}

    def at(self, guess: Guess, *, moving: bool = True) -> Modelled:
        """The release that this guess would give; `moving`: whether the block changes from step to step."""
        k, per_step = len(guess.flat), self.layout.draws // self.steps
        values = {
            n: v.view(k, self.steps, per_step, *v.shape[1:]) for n, v in self.layout.draws_of(guess).items()
        }
        terms: list[list[Term]] = [[] for _ in range(k)]
        states: list[State] = [{}]
        total = {name: torch.zeros_like(p) for name, p in self.own.items()}
        for s in range(self.steps):
            state = states[s]
            found = self.factored.gradient({n: v[:, s].flatten(0, 1) for n, v in values.items()}, state)
            tensors = {
                name: t.view(k, per_step, *t.shape[1:]).mean(1) for name, t in self._tensors(found).items()
            }
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
                name: sum(
                    (term.factors[self.place[name]] * term.tensors[name] for term in terms), torch.zeros(())
                )
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

    def normal(
        self,
        guess: Guess,
        found: Modelled,
        misfit: dict[str, Tensor],
        weights: dict[str, float],
        *,
        moves: Moves = "all",
        dtype: torch.dtype = torch.float64,
    ) -> tuple[Tensor, Tensor]:
        """J W^2 J^T (K m, K m) and J W^2 r (K m,): J the release's derivative by the unknowns that move, W the
        weight of each tensor, r the misfit."""
        layout, k = self.layout, len(guess.flat)
        derivatives = [
            self._derivatives(guess, found, i, j, moves, dtype) for i in range(k) for j in range(layout.draws)
        ]
        size = {"all": layout.size, "example": layout.example, "draws": layout.size - layout.example}[moves]
        places = [self._places(i, j, moves, size) for i in range(k) for j in range(layout.draws)]
        curvature = torch.zeros(k * size, k * size, dtype=torch.float64)
        slope = torch.zeros(k * size, dtype=torch.float64)
        residual = {name: r.to(dtype) for name, r in misfit.items()}
        for p, one in enumerate(derivatives):
            along = sum((one.along(n, r) * weights[n] ** 2 for n, r in residual.items()), torch.zeros(()))
            slope[places[p]] += along.double()
            for q, other in enumerate(derivatives[: p + 1]):
                block = sum(
                    (one.inner(n, other) * weights[n] ** 2 for n in residual), torch.zeros(())
                ).double()
                curvature[places[p][:, None], places[q]] += block
                if q < p:
                    curvature[places[q][:, None], places[p]] += block.T
        return curvature, slope

    def _places(self, i: int, j: int, moves: Moves, size: int) -> Tensor:
        """Where the unknowns of one draw lie among those that move."""
        layout = self.layout
        shared = torch.arange(layout.example if moves != "draws" else 0)
        own = torch.arange(layout.draw if moves != "example" else 0) + len(shared) + j * layout.draw
        return i * size + torch.cat([shared, own])

    def _derivatives(
        self, guess: Guess, found: Modelled, i: int, j: int, moves: Moves, dtype: torch.dtype
    ) -> _Derivative:
        """Of the clipped gradient of example i's step, by the unknowns of draw j."""
        layout, per_step = self.layout, self.layout.draws // self.steps
        first = layout.example if moves == "draws" else 0
        last = layout.example if moves == "example" else None
        directions = torch.eye(layout.example + layout.draw, dtype=dtype)[first:last]
        discrete = {n: v[i] for n, v in guess.discrete.items()}
        at, slope = self.factored.derivative(
            lambda point: layout.at(point, discrete),
            layout.points(guess.flat[i : i + 1])[0, j].to(dtype),
            directions,
            found.states[j // per_step],
        )
        term = found.terms[i][j // per_step]
        rows = {name: _rows(name, at, slope) for name in self.problem.names}
        tensors = {name: t.to(dtype) for name, t in term.tensors.items()}
        by_layer = (
            torch.stack(
                [
                    sum(
                        (2 * r.along(tensors[n]) for n in own if (r := rows[n]) is not None),
                        directions.new_zeros(len(directions)),
                    )
                    for own in self.layers.values()
                ],
                dim=1,
            )
            / per_step
        )  # (m, L), of the squared norms
        if self.clip.kind != "per-layer":
            by_layer = by_layer.sum(1, keepdim=True).expand_as(by_layer)
        radial = by_layer * term.slopes.to(dtype)
        return _Derivative(
            rows, tensors,
            {n: float(term.factors[self.place[n]]) / per_step for n in rows},
            {n: radial[:, self.place[n]] for n in rows},
        )  # fmt: skip


@dataclass(frozen=True)
class _Derivative:
    """d (f g) = f dg + g df of one draw's share of a clipped gradient, by parameter: `rows` dg, `factors` f over the
    draws of the step, `tensors` g, `radial` df (m,)."""

    rows: dict[str, Rows | None]
    tensors: dict[str, Tensor]
    factors: dict[str, float]
    radial: dict[str, Tensor]

    def along(self, name: str, tensor: Tensor) -> Tensor:
        """Inner products with a tensor, (m,)."""
        rows, value = self.rows[name], (self.tensors[name] * tensor.view_as(self.tensors[name])).sum()
        found = self.radial[name] * value
        return found if rows is None else found + self.factors[name] * rows.along(tensor)

    def inner(self, name: str, other: _Derivative) -> Tensor:
        """Inner products with another draw's, (m, m')."""
        rows, others = self.rows[name], other.rows[name]
        radial, radial_of_other = self.radial[name], other.radial[name]
        found = torch.outer(radial, radial_of_other) * (self.tensors[name] * other.tensors[name]).sum()
        if rows is None or others is None:
            return found
        f, h = self.factors[name], other.factors[name]
        return (
            found
            + f * h * inner(rows, others)
            + torch.outer(f * rows.along(other.tensors[name]), radial_of_other)
            + torch.outer(radial, h * others.along(self.tensors[name]))
        )


def _rows(name: str, at: Gradient, slope: Gradient) -> Rows | None:
    """The derivative of one parameter's gradient; none where the loss does not use it."""
    module, _, kind = name.rpartition(".")
    if name in slope.dense:
        return DenseRows(slope.dense[name].flatten(1))
    if module not in slope.linear:
        return None
    (a, g), (da, dg) = at.linear[module], slope.linear[module]
    return DenseRows(dg.sum(1)) if kind == "bias" else WeightRows(a, g, da, dg)
