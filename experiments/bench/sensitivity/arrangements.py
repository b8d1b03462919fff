"""Gradients as they come, and orders in which a sum of limited precision would lose or gain most.

Each is a table (n, 2) of gradients that a layer hands to the sum unchanged. Lengths are as clipped, at most 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def aligned(n: int) -> Tensor:
    """All alike, and far above the clip."""
    return torch.tensor([100.0, 0.0]).repeat(n, 1)


def cancelling(n: int) -> Tensor:
    """Up and down in turns, of slightly different lengths."""
    signs = torch.ones(n).index_fill_(0, torch.arange(1, n, 2), -1.0)
    return torch.stack([signs * (0.9 + 1e-3 * torch.arange(n) / n), torch.zeros(n)], dim=1)


def sorted_by_sign(n: int) -> Tensor:
    """All the way up, then down again."""
    signs = torch.where(torch.arange(n) < n // 2, 1.0, -1.0)
    return torch.stack([signs * 0.99, torch.full((n,), 0.01)], dim=1)


def below_an_edge(n: int) -> Tensor:
    """First to just above a power of two, then many small steps down that round to none above it, and to more below.

    The example at place 0 is one step down, after which all small ones count nearly double.
    """
    edge = 2 ** max(1, (n // 3).bit_length() - 1)
    large = torch.full((2 * edge,), 0.5)
    large[-1] = 0.75  # a quarter above the edge
    spacing = edge * 2.0**-23
    small = torch.full((max(0, n - 1 - len(large)),), -0.3 * spacing)
    along = torch.cat([torch.tensor([-1.0]), large, small])[:n]
    return torch.stack([along, torch.zeros(len(along))], dim=1)


def small_then_large(n: int) -> Tensor:
    """Many small ones that a large sum would not feel, before and after it is large."""
    along = torch.where(torch.arange(n) % 50 == 0, 0.99, 1e-6)
    return torch.stack([along, 1e-3 * torch.ones(n)], dim=1)


def random(n: int) -> Tensor:
    """Lengths over six orders of magnitude, in any direction."""
    g = torch.Generator().manual_seed(n)
    return torch.randn(n, 2, generator=g) * 10 ** (6 * torch.rand(n, 1, generator=g) - 4)


ARRANGEMENTS: dict[str, Callable[[int], Tensor]] = {
    "aligned": aligned,
    "cancelling": cancelling,
    "sorted by sign": sorted_by_sign,
    "below an edge": below_an_edge,
    "small and large": small_then_large,
    "random": random,
}


ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "as made": lambda table: torch.arange(len(table)),
    "rising": lambda table: table[:, 0].argsort(),
    "falling": lambda table: table[:, 0].argsort(descending=True),
    "shuffled": lambda table: torch.randperm(len(table), generator=torch.Generator().manual_seed(0)),
}
