"""The last steps of gradient matching: projected Gauss-Newton with its damping (Levenberg-Marquardt).

Sums of several examples are badly conditioned: examples can change together with little change of their sum, and
first-order methods crawl there. Residuals are relative to each tensor's own size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .problem import Problem, Values

_LARGEST = 1 << 27  # values of a Jacobian
_TRIES = 6  # of a step's damping
_LEAST = 1e-12  # relative damping


@dataclass(frozen=True)
class Residuals:
    """What is to vanish: the gradients' sum less `target` (P,), and `more` of values with its Jacobian (K n, R).

    `weights` (P,): of the gradient's coordinates; those of weight 0 are left out.
    """

    problem: Problem
    target: Tensor
    weights: Tensor
    names: tuple[str, ...]
    more: Callable[[Values], Tensor] | None = None
    more_jacobian: Callable[[Values], Tensor] | None = None

    def __call__(self, values: Values) -> Tensor:
        with torch.no_grad():
            off = (self.problem.gradient(values).sum(0) - self.target) * self.weights
            return off if self.more is None else torch.cat([off, self.more(values)])

    def jacobian(self, values: Values) -> Tensor:
        """(K n, P + R) float32."""
        kept, parts = self.weights != 0, []
        for i in range(len(values[self.names[0]])):  # one by one: it is large
            one = self.problem.jacobian({name: v[i : i + 1] for name, v in values.items()}, self.names)[0]
            parts.append(one[:, kept] * self.weights[kept].float())
        found = torch.cat(parts)
        return found if self.more_jacobian is None else torch.cat([found, self.more_jacobian(values)], dim=1)

    def seen(self, residual: Tensor) -> Tensor:
        """The residual's coordinates in the order of the Jacobian's columns."""
        p = len(self.weights)
        return torch.cat([residual[:p][self.weights != 0], residual[p:]])


def affordable(problem: Problem, examples: int, unknowns: int) -> bool:
    return examples * unknowns * problem.size <= _LARGEST


def descend(
    residuals: Residuals, values: Values, bounds: dict[str, tuple[float, float]], steps: int, solved: float
) -> Values:
    """At most `steps` steps from `values`, fields of `bounds` kept within these; ends at a square sum of `solved`."""
    names = residuals.names
    shapes = [values[name].shape for name in names]
    k = shapes[0][0]
    sizes = [shape.numel() // k for shape in shapes]
    limits = [bounds.get(name, (-torch.inf, torch.inf)) for name in names]
    low, high = (
        torch.cat(
            [torch.full((k, n), each[side]).double() for each, n in zip(limits, sizes, strict=True)], dim=1
        )
        for side in (0, 1)
    )

    def cut(flat: Tensor) -> Values:
        parts = zip(names, flat.split(sizes, dim=1), shapes, strict=True)
        return values | {name: part.reshape(shape) for name, part, shape in parts}

    def clamped(flat: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(flat, low), high)

    flat = clamped(torch.cat([values[name].double().reshape(k, -1) for name in names], dim=1))
    residual = residuals(cut(flat))
    cost, damping = float(residual.square().sum()), 1e-4
    for _ in range(steps):
        jacobian = residuals.jacobian(cut(flat))
        slope = (jacobian @ residuals.seen(residual).float()).double().view_as(flat)
        free = (~(((flat <= low) & (slope > 0)) | ((flat >= high) & (slope < 0)))).flatten()
        kept = jacobian[free]
        curvature = (kept @ kept.T).double()
        scale = float(curvature.diagonal().mean())
        better = False
        for _ in range(_TRIES):
            damped = curvature + damping * scale * torch.eye(len(curvature), dtype=torch.float64)
            step = torch.zeros(flat.numel(), dtype=torch.float64)
            step[free] = torch.linalg.solve(damped, -slope.flatten()[free])
            moved = clamped(flat + step.view_as(flat))
            after = residuals(cut(moved))
            better = float(after.square().sum()) < cost
            if better:
                flat, residual, cost = moved, after, float(after.square().sum())
                damping = max(damping / 10, _LEAST)
                break
            damping *= 10
        if not better or cost < solved:
            break
    return cut(flat)
