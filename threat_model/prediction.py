"""What the best attack is expected to find, before anything is released: the local posterior of an example.

Near the truth a release is linear in the example and its noise draws, y = y0 + J (x - x0) + noise of deviation s, and
with the public Gaussian prior (mean m, precision L) the posterior's mode and its error are

    A = (J J^T / s^2 + L)^-1,     E|x^ - x0|^2 = tr A (J J^T / s^2) A + |A L (x0 - m)|^2,

of which the rows of the example count. A pure function of model, block, clip, noise and examples (the company's own,
or public ones in their place). It is a prediction, not a bound: where the release is not linear, or values are
bounded, an attack may find more or less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .release_model import ReleaseModel
from .unknowns import Guess
from .winning import GRID


@dataclass(frozen=True)
class Information:
    """J J^T (K n, K n) of K unknown examples in one release, with their offsets x0 - m (K n,) and prior precision."""

    fisher: Tensor
    offset: Tensor
    precision: Tensor
    rows: dict[str, Tensor]  # of each field, which coordinates are its own: (K, N)

    def errors(self, noise: float) -> dict[str, Tensor]:
        """Expected mean squared error of each field of each example, (K,), under noise of this deviation."""
        if math.isinf(noise):
            return {name: self.offset[rows].square().mean(1) for name, rows in self.rows.items()}
        # Scaled by the prior: precisions differ by orders of magnitude.
        scale = self.precision.diagonal().rsqrt()
        fisher = scale[:, None] * self.fisher * scale / noise**2
        prior = scale[:, None] * self.precision * scale
        inverse = torch.linalg.inv(fisher + prior)
        bias = scale * (inverse @ (prior @ (self.offset / scale)))
        spread = scale**2 * (inverse @ fisher * inverse).sum(1)
        squared = spread.clamp_min(0.0) + bias.square()
        return {name: squared[rows].mean(1) for name, rows in self.rows.items()}

    def gain(self, noise: float, field: str) -> Tensor:
        """How much closer to the field than without the release, dB (K,)."""
        without, found = self.errors(math.inf)[field], self.errors(noise)[field]
        return 10 * (without.clamp_min(1e-30) / found.clamp_min(1e-30)).log10()


def information(model: ReleaseModel, truth: Guess) -> Information:
    """Of K examples that nobody but the company knows, in one release."""
    layout, k = model.layout, len(truth.flat)
    found = model.at(truth)
    nothing = {name: torch.zeros_like(p) for name, p in model.own.items()}
    ones = dict.fromkeys(nothing, 1.0)
    fisher, _ = model.normal(truth, found, nothing, ones)
    starts = torch.arange(k)[:, None] * layout.size
    places, first = {}, 0
    for field, size in zip(layout.fields, layout.sizes, strict=True):
        places[field.name] = starts + torch.arange(first, first + size)
        first += size
    precision = torch.block_diag(*[layout.precision] * k)
    return Information(fisher, (truth.flat - layout.mean).flatten(), precision, places)


def wins_at(found: list[Information], clip: float, field: str, least: float = 1.0) -> float | None:
    """The largest noise multiplier of the grid at which the mean gain is predicted to reach `least` dB."""
    for z in reversed(GRID):
        if float(torch.cat([each.gain(z * clip, field) for each in found]).mean()) >= least:
            return z
    return None
