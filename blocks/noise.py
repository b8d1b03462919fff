"""Noise levels and their partition into one interval per block.

DiffusionBlocks (arXiv 2506.14202), section 3.3: sigma is log-normal on [sigma_min, sigma_max] and the
range is cut so that every block receives the same probability mass. Block 0 holds the network's first
layers and owns the highest noise, because sampling starts there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from ..errors import InputError

_STANDARD_NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class LogNormalNoise:
    """log sigma ~ N(P_mean, P_std^2), truncated to [sigma_min, sigma_max].

    The paper takes P_mean=-1.2. The default here is higher: below sigma of about 0.5 a noisy unit-norm
    label embedding already tells the label, and a block trained there copies it instead of reading its input.
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

    def cdf(self, sigma: float) -> float:
        """F(sigma) of the untruncated law, in (0, 1)."""
        return _STANDARD_NORMAL.cdf((math.log(sigma) - self.P_mean) / self.P_std)

    def quantile(self, p: float) -> float:
        """F^-1(p), p in (0, 1)."""
        return math.exp(self.P_mean + self.P_std * _STANDARD_NORMAL.inv_cdf(p))

    def split(self, low: float, high: float, fraction: float) -> float:
        """The sigma with `fraction` of the mass of [low, high] below it."""
        p_low, p_high = self.cdf(low), self.cdf(high)
        return min(max(self.quantile(p_low + (p_high - p_low) * fraction), low), high)


@dataclass(frozen=True)
class Partition:
    """B noise intervals, one per block; `edges` has B+1 values, falling from sigma_max to sigma_min.

    partition = Partition.equi_probability(LogNormalNoise(), blocks=3)
    sigma = partition.sample(0, 128, generator)     # (128,), the highest noise
    partition.block_of(sigma)                       # all 0, but for the overlap
    """

    noise: LogNormalNoise
    edges: tuple[float, ...]
    overlap: float = 0.05

    @classmethod
    def equi_probability(cls, noise: LogNormalNoise, blocks: int, overlap: float = 0.05) -> Partition:
        """Edges F^-1(F(min) + (F(max) - F(min)) i/B), section 3.3 of the paper."""
        if blocks < 1:
            raise InputError("blocks", blocks, "expected a whole number >= 1")
        if not 0 <= overlap < 1:
            raise InputError("overlap", overlap, "expected a number in [0, 1)")
        inner = [noise.split(noise.sigma_min, noise.sigma_max, 1 - i / blocks) for i in range(1, blocks)]
        return cls(noise, (noise.sigma_max, *inner, noise.sigma_min), overlap)

    @property
    def blocks(self) -> int:
        return len(self.edges) - 1

    def interval(self, block: int) -> tuple[float, float]:
        """(low, high) that block owns at inference; the intervals of all blocks tile the range."""
        return self.edges[block + 1], self.edges[block]

    def training_interval(self, block: int) -> tuple[float, float]:
        """The owned interval grown by `overlap` of its log width at both ends, kept within the range."""
        low, high = self.interval(block)
        growth = (high / low) ** self.overlap
        return max(low / growth, self.noise.sigma_min), min(high * growth, self.noise.sigma_max)

    def block_of(self, sigma: Tensor) -> Tensor:
        """Owner of each noise level: (N,) float -> (N,) long in [0, B)."""
        inner = torch.tensor(self.edges[1:-1], dtype=sigma.dtype, device=sigma.device)
        return (sigma[:, None] < inner).sum(dim=1)

    def sample(self, block: int, n: int, generator: torch.Generator) -> Tensor:
        """(n,) noise levels from the log-normal law truncated to the training interval."""
        low, high = self.training_interval(block)
        p_low, p_high = self.noise.cdf(low), self.noise.cdf(high)
        u = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device)
        p = (p_low + (p_high - p_low) * u).clamp(1e-12, 1 - 1e-12)
        sigma = torch.exp(self.noise.P_mean + self.noise.P_std * torch.special.ndtri(p))
        return sigma.clamp(low, high).float()

    def midpoints(self, steps_per_block: int = 1) -> list[tuple[int, float]]:
        """(block, sigma) of every inference step, from the highest noise down.

        Each step sits at the middle of its share of the block's probability mass. Steps at the edges
        would make the last block run at sigma_min, where c_out vanishes and the block does nothing.
        """
        return [
            (b, self.noise.split(*self.interval(b), 1 - (i + 0.5) / steps_per_block))
            for b in range(self.blocks)
            for i in range(steps_per_block)
        ]
