"""Diffusion noise of private training, from the cryptographic stream.

The proof of DP-SGD needs diffusion noise that is independent for each example, whoever shares its batch.
`torch.Generator` cannot give that: its seed has 32 bits (the rest of a longer one is dropped), so all draws of a
release depend on each other, and trying 2^32 seeds finds them all.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from .randomness import Randomness

_GRAIN = 2.0**24  # of a float32 in [0, 1)


class CryptographicSource:
    """A `blocks.noise.Source` that draws every value from its own bytes of the stream."""

    def __init__(self, randomness: Randomness) -> None:
        self._randomness = randomness

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform on [0, 1); in float32 the multiples of 2^-24."""
        u = torch.from_numpy(self._randomness.uniform(prod(shape))).view(shape)
        return u if dtype == torch.float64 else u.mul_(_GRAIN).floor_().div_(_GRAIN).to(dtype)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, float32."""
        return torch.from_numpy(self._randomness.normal(prod(shape))).float().view(shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform on 0 .. high - 1."""
        return torch.from_numpy(self._randomness.integers(high, prod(shape))).view(shape)
