"""What a block reads of its noise level, as a curve: computed once on a fine grid, with its direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_GRID = 4096  # noise levels tried along the curve


@dataclass(frozen=True)
class LevelCurve:
    """`at`: log sigma (G,) -> vectors c (G, D), each from its own level alone; `interval`: of log sigma.

    curve = LevelCurve(lambda level: model.condition(0, level.exp()), (-1.0, 2.0))
    values, slopes = curve.with_slope(torch.tensor([0.3], dtype=torch.float64))          # (1, D) each
    """

    at: Callable[[Tensor], Tensor]
    interval: tuple[float, float]

    @cached_property
    def grid(self) -> Tensor:
        """Levels (G,) float64, evenly spread over the interval."""
        return torch.linspace(*self.interval, _GRID, dtype=torch.float64)

    @cached_property
    def directions(self) -> Tensor:
        """Vectors of length 1 (G, D) at the levels of the grid."""
        return directed(self.at(self.grid))

    @property
    def cell(self) -> float:
        """The distance of two levels of the grid, nearly."""
        return (self.interval[1] - self.interval[0]) / _GRID

    def with_slope(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors and their derivatives at levels (J,): (J, D) each.

        The backward pass is linear in what it is given, u -> u J; the derivative of that along a level is the column
        of J that is looked for. Twice backward takes a fifth of the time of one pass of `torch.func.jvp` here.
        """
        with torch.enable_grad():
            moved = levels.detach().clone().requires_grad_()
            c = self.at(moved)
            given = torch.zeros_like(c, requires_grad=True)
            (back,) = torch.autograd.grad(c, moved, given, create_graph=True)
            (slope,) = torch.autograd.grad(back, given, torch.ones_like(back))
        return c.detach(), slope


def directed(vectors: Tensor) -> Tensor:
    """(G, D) of length 1 each."""
    found: Tensor = vectors / vectors.norm(dim=1, keepdim=True)
    return found
