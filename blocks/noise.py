"""Noise levels and their partition into one interval per block.

DiffusionBlocks (arXiv 2506.14202), section 3.3: a law of noise levels on [low, high] is divided into one interval per
block. Block 0 has the network's first layers and the highest noise, where sampling starts. A level is sigma for
Gaussian noise, and the masking rate for masked tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..errors import InputError

_STANDARD_NORMAL = NormalDist()


class Source(Protocol):
    """A source of training noise: independent draws, each used once."""

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform on [0, 1)."""
        ...

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, float32."""
        ...


@dataclass(frozen=True)
class Seeded:
    """Repeatable draws for public data and tests. Not for private training: a seed has 32 bits (see `privacy`)."""

    generator: torch.Generator

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=dtype, device=self.generator.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.generator.device)


class NoiseLaw(Protocol):
    """A continuous law of noise levels, of which [low, high] is used."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    def cdf(self, level: float) -> float: ...
    def quantiles(self, p: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class LogNormalNoise:
    """log sigma ~ N(P_mean, P_std^2), used on [sigma_min, sigma_max].

    The paper uses P_mean=-1.2. The default here is higher: below a sigma of about 0.5 a noisy unit-norm label
    embedding already reveals the label, and a block trained there copies it instead of using its input.

    Raises:
        InputError: a value is out of range.
    """

    P_mean: float = 1.0
    P_std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not self.P_std > 0:
            raise InputError("P_std", self.P_std, "expected a number > 0")
        if not 0 < self.sigma_min < self.sigma_max:
            raise InputError(
                "sigma_min", self.sigma_min, f"expected 0 < sigma_min < sigma_max={self.sigma_max}"
            )

    @property
    def low(self) -> float:
        return self.sigma_min

    @property
    def high(self) -> float:
        return self.sigma_max

    def cdf(self, level: float) -> float:
        """F(sigma) of the untruncated law, in (0, 1)."""
        return _STANDARD_NORMAL.cdf((math.log(level) - self.P_mean) / self.P_std)

    def quantiles(self, p: Tensor) -> Tensor:
        """F^-1(p), p in (0, 1), float64."""
        return torch.exp(self.P_mean + self.P_std * torch.special.ndtri(p.clamp(1e-12, 1 - 1e-12)))


@dataclass(frozen=True, kw_only=True)
class MaskingRate:
    """The share of masked tokens, uniform on [rate_min, 1]: alpha = 1 - rate in MD4 (Shi et al. 2024).

    Raises:
        InputError: rate_min is not in (0, 1).
    """

    rate_min: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.rate_min < 1:
            raise InputError("rate_min", self.rate_min, "expected a number in (0, 1)")

    @property
    def low(self) -> float:
        return self.rate_min

    @property
    def high(self) -> float:
        return 1.0

    def cdf(self, level: float) -> float:
        return level

    def quantiles(self, p: Tensor) -> Tensor:
        return p


@dataclass(frozen=True)
class Partition:
    """B noise intervals, one per block; `edges` has B+1 values, decreasing from the law's high to its low.

    Levels are drawn from the law truncated to the block's interval, or log-uniformly (`within`).

    partition = Partition.equi_probability(LogNormalNoise(), blocks=3)
    sigma = partition.sample(0, 128, source)        # (128,), the highest noise
    partition.block_of(sigma)                       # all 0, except in the overlap

    Raises:
        InputError: the edges are not decreasing from the law's high to its low, or the overlap is not in [0, 1).
    """

    law: NoiseLaw
    edges: tuple[float, ...]
    overlap: float = 0.05
    within: Literal["law", "log-uniform"] = "law"

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise InputError("overlap", self.overlap, "expected a number in [0, 1)")
        if len(self.edges) < 2:
            raise InputError("blocks", len(self.edges) - 1, "expected a whole number >= 1")
        if any(not a > b for a, b in pairwise(self.edges)):
            raise InputError("edges", self.edges, "must fall from the highest noise to the lowest")
        if not math.isclose(self.edges[0], self.law.high) or not math.isclose(self.edges[-1], self.law.low):
            raise InputError("edges", self.edges, f"must reach from {self.law.high} to {self.law.low}")

    @classmethod
    def equi_probability(cls, law: NoiseLaw, blocks: int, overlap: float = 0.05) -> Partition:
        """Edges F^-1(F(min) + (F(max) - F(min)) i/B), section 3.3 of the paper."""
        shares = [1 - i / blocks for i in range(1, blocks)]
        return cls(law, (law.high, *(_split(law, law.low, law.high, s) for s in shares), law.low), overlap)

    @classmethod
    def uniform(
        cls, law: NoiseLaw, blocks: int, overlap: float = 0.05, *, scale: Literal["log", "linear"] = "log"
    ) -> Partition:
        """Edges at equal distances; linear in the paper's section 3.3, logarithmic in its appendix."""
        if scale == "log":
            ratio = law.low / law.high
            inner = [law.high * ratio ** (i / blocks) for i in range(1, blocks)]
        else:
            inner = [law.high + (law.low - law.high) * i / blocks for i in range(1, blocks)]
        return cls(law, (law.high, *inner, law.low), overlap)

    @classmethod
    def equi_information(
        cls,
        law: NoiseLaw,
        blocks: int,
        levels: Sequence[float],
        uncertainty: Sequence[float],
        overlap: float = 0.05,
    ) -> Partition:
        """Edges at which the uncertainty about the target decreases by equal shares; log-uniform within intervals.

        `uncertainty[i]` at `levels[i]`, levels increasing, is the posterior entropy H(target | z) or a measured
        loss. As in the time warping of Dieleman et al. 2022 (arXiv 2211.15089, section 4.2).
        """
        # Made monotone: a measured loss is noisy.
        u = torch.as_tensor(uncertainty, dtype=torch.float64).cummax(0).values
        log_levels = torch.as_tensor(levels, dtype=torch.float64).log()
        even = (log_levels - log_levels[0]) / (log_levels[-1] - log_levels[0])
        rise = u - u[0]
        # A small share of the uniform partition, so that no interval is empty where the curve is flat.
        share = 0.95 * rise / rise[-1] + 0.05 * even if rise[-1] > 0 else even
        inner = []
        for i in range(1, blocks):
            at = int((share < 1 - i / blocks).sum().clamp(1, len(share) - 1))
            part = (1 - i / blocks - share[at - 1]) / (share[at] - share[at - 1])
            inner.append(float((log_levels[at - 1] + part * (log_levels[at] - log_levels[at - 1])).exp()))
        return cls(law, (law.high, *inner, law.low), overlap, "log-uniform")

    @property
    def blocks(self) -> int:
        return len(self.edges) - 1

    def interval(self, block: int) -> tuple[float, float]:
        """The block's interval (low, high) at inference; the intervals of all blocks cover the range."""
        return self.edges[block + 1], self.edges[block]

    def training_interval(self, block: int) -> tuple[float, float]:
        """The block's interval extended by `overlap` of its log width at both ends, within the range."""
        low, high = self.interval(block)
        growth = (high / low) ** self.overlap
        return max(low / growth, self.law.low), min(high * growth, self.law.high)

    def block_of(self, level: Tensor) -> Tensor:
        """The block of each noise level: (N,) float -> (N,) long in [0, B)."""
        inner = torch.tensor(self.edges[1:-1], dtype=level.dtype, device=level.device)
        return (level[:, None] < inner).sum(dim=1)

    def sample(self, block: int, n: int, source: Source) -> Tensor:
        """(n,) noise levels in the training interval."""
        u = source.uniform(n, dtype=torch.float64)
        return self.levels(block, u, trained=True).float()

    def levels(self, block: int, u: Tensor, *, trained: bool = False) -> Tensor:
        """The levels with a share u in [0, 1] of the interval's mass below them, float64."""
        low, high = self.training_interval(block) if trained else self.interval(block)
        if self.within == "log-uniform":
            return (low * (high / low) ** u).clamp(low, high)
        p_low, p_high = self.law.cdf(low), self.law.cdf(high)
        return self.law.quantiles(p_low + (p_high - p_low) * u).clamp(low, high)

    def midpoints(self, steps_per_block: int = 1) -> list[tuple[int, float]]:
        """(block, level) of every inference step, from the highest noise down.

        Each step is at the middle of its share of the block's mass. With steps at the edges the last block would run
        at the lowest level, where c_out vanishes and the block has no effect.
        """
        u = 1 - (torch.arange(steps_per_block, dtype=torch.float64) + 0.5) / steps_per_block
        return [(b, float(level)) for b in range(self.blocks) for level in self.levels(b, u)]


def _split(law: NoiseLaw, low: float, high: float, fraction: float) -> float:
    """The level with `fraction` of the mass of [low, high] below it."""
    p = law.cdf(low) + (law.cdf(high) - law.cdf(low)) * fraction
    return min(max(float(law.quantiles(torch.tensor(p, dtype=torch.float64))), low), high)
