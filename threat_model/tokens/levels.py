"""The noise levels of an example's draws, from the gradient of the modulation.

The input of the modulation layers is the embedding c of the noise level alone, so their gradient is a sum of outer
products with c(level_j) of the draws: each level is where the known curve c meets the gradient's row space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...blocks.taps import Modulation
from .span import Span

_GRID = 1024
_ZOOMS = 8  # each narrows a level's cell sixteenfold
_FINE = 33


def levels(
    tensors: dict[str, Tensor], modulation: Modulation, interval: tuple[float, float], draws: int
) -> Tensor:
    """At most `draws` levels within `interval`, (d,), whose embeddings agree best with the gradients in `tensors`."""
    rows = torch.cat([tensors[name] for name in modulation.weights])  # (6 D layers, D)
    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    span = Span(directions, sizes / sizes[0].clamp_min(1e-30), 0.0)
    basis = span.directions[: min(draws, span.width - 1)]  # (d, D)

    def distance(at: Tensor) -> Tensor:
        c = modulation.curve(at.flatten())
        c = c / c.norm(dim=1, keepdim=True)
        rest: Tensor = c - (c @ basis.T) @ basis
        found: Tensor = rest.norm(dim=1).view(at.shape)
        return found

    grid = torch.linspace(*interval, _GRID, dtype=torch.float64)
    found = distance(grid)  # (G,)
    padded = torch.cat([found[:1] + 1, found, found[-1:] + 1])
    minima = ((found <= padded[:-2]) & (found < padded[2:])).nonzero()[:, 0]
    best = grid[minima[found[minima].argsort()[:draws]]]
    cell = (interval[1] - interval[0]) / (_GRID - 1)
    steps = torch.linspace(-1, 1, _FINE, dtype=torch.float64)
    for _ in range(_ZOOMS):
        around = (best[:, None] + cell * steps).clamp(*interval)  # (d, F)
        best = around.gather(1, distance(around).argmin(dim=1, keepdim=True))[:, 0]
        cell = cell / 16
    return best
