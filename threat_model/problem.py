"""A reconstruction problem: what an example consists of, and its gradient as a function of that.

An attacker knows the model and the loss, so it can compute the gradient of any example that it imagines. What it
looks for are `fields` of the example (an image, a label, tokens); the noise draw of training is a nuisance, estimated
along with them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..blocks.taps import Field, Tap

Values = dict[str, Tensor]
"""Unknowns by field: (K, *shape) of K examples, or (K, d, *shape) of a nuisance with d draws an example."""


class Problem(ABC):
    """The gradient of an example as its attacker computes it: float64, parameters in the order of updates."""

    fields: tuple[Field, ...]
    names: list[str]
    shapes: list[torch.Size]
    taps: tuple[Tap, ...] = ()
    draws: int = 1

    @property
    def sizes(self) -> list[int]:
        return [shape.numel() for shape in self.shapes]

    @property
    def size(self) -> int:
        """P, how many values an update has."""
        return sum(self.sizes)

    def tensors(self, vector: Tensor) -> dict[str, Tensor]:
        """Cut a flat vector (P,) into the named tensors."""
        parts = zip(self.names, vector.split(self.sizes), self.shapes, strict=True)
        return {name: part.view(shape) for name, part, shape in parts}

    @abstractmethod
    def gradient(self, values: Values) -> Tensor:
        """Gradients (K, P) of K examples, each averaged over its draws."""

    @abstractmethod
    def jacobian(self, values: Values, names: tuple[str, ...]) -> Tensor:
        """d gradient / d the named continuous unknowns, flat in their order: (K, n, P) float32."""

    @abstractmethod
    def sample(self, values: Values, generator: torch.Generator) -> Values:
        """The values with their nuisance drawn as training draws it."""
