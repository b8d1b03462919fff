"""Clipped sums of neighbouring data sets through the engine that trains, and how far one example moves them.

The only place here that calls the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ....privacy.clipping import Clipping, PerExampleClipping


@dataclass(frozen=True)
class Examples:
    """A block, and the losses of examples by their numbers: `losses(numbers)` gives (len(numbers) * draws,)."""

    block: nn.Module
    losses: Callable[[Tensor], Tensor]
    draws: int = 1


def clipped_sum(
    examples: Examples, numbers: Tensor, *, at_once: int = 128, clipping: Clipping = "flat"
) -> Tensor:
    """The sum over the examples with these numbers, in this order, each clipped to 1: (P,) float64."""
    with PerExampleClipping(
        examples.block, max_grad_norm=1.0, clipping=clipping, examples_at_once=at_once
    ) as engine:
        found = engine.sum(
            lambda rows: examples.losses(numbers[rows]), examples=len(numbers), draws=examples.draws
        )
    return found.vector.detach().double()


def movement(
    examples: Examples, numbers: Tensor, at: int, *, at_once: int = 128, clipping: Clipping = "flat"
) -> float:
    """How far the example at place `at` moves the sum, in units of the clip."""
    small = clipped_sum(examples, without(numbers, at), at_once=at_once, clipping=clipping)
    large = clipped_sum(examples, numbers, at_once=at_once, clipping=clipping)
    return float((large - small).norm())


def without(numbers: Tensor, at: int) -> Tensor:
    """The neighbour that lacks the example at place `at`."""
    return torch.cat([numbers[:at], numbers[at + 1 :]])


PLACES: dict[str, Callable[[int], int]] = {
    "first": lambda n: 0,
    "middle": lambda n: n // 2,
    "last": lambda n: n - 1,
}
