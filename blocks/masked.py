"""Masked diffusion (MD4, Shi et al. 2024, arXiv 2406.04329): a masking rate in place of sigma.

A token is masked where its u, uniform on [0, 1], is below the rate t = 1 - alpha, so a lower rate only unmasks.
With linear alpha the negative log-likelihood a token is bounded by

    E_t  1/t * E_z  mean over tokens of  [z = MASK] * -log p(y | z),      t uniform on [0, 1],

each t with the block whose interval has it (arXiv 2506.14202, section 4.3: edges at equal steps of alpha). Blocks
pass tokens to each other, so every block has its own token embedding.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .denoiser import Denoiser, Draw, over
from .noise import MaskingRate, NoiseLaw, Partition, Source
from .sampler import run_chain
from .settings import NoiseSettings

_AT_ONCE = 256
_NEVER = -1e9  # log-probability of an impossible token; finite, so that 0 * _NEVER is not NaN


class MaskedDenoiser(Denoiser):
    """Targets (N, T) long in [0, V), z the same with MASK = V, predictions logits (N, T, V)."""

    metric_by_example = False

    def __init__(self, partition: Partition, vocabulary: int) -> None:
        super().__init__(partition)
        self.vocabulary = vocabulary
        self.mask = vocabulary

    @classmethod
    def noise_law(cls, noise: NoiseSettings) -> NoiseLaw:
        return MaskingRate(rate_min=noise.rate_min)

    def clean(self, targets: Tensor) -> Tensor:
        return targets

    def draw(self, block: int, targets: Tensor, source: Source) -> Draw:
        rate = self.partition.sample(block, len(targets), source)
        return Draw(rate, source.uniform(*targets.shape))

    def corrupt(self, clean: Tensor, draw: Draw) -> Tensor:
        return clean.masked_fill(draw.noise < over(draw.level, clean), self.mask)

    def known(self, logits: Tensor, z: Tensor) -> Tensor:
        """Logits (N, T, V) that are certain of every unmasked token of z."""
        shown = z.clamp(max=self.vocabulary - 1)
        certain = torch.full_like(logits, _NEVER).scatter_(-1, shown[..., None], 0.0)
        return torch.where((z == self.mask)[..., None], logits, certain)

    def estimate(self, prediction: Tensor) -> Tensor:
        return prediction.argmax(dim=-1)

    def loss(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, mean over all T tokens; unmasked tokens are certain and add nothing."""
        each = F.cross_entropy(prediction.flatten(0, -2), targets.flatten(), reduction="none")
        return each.view(len(targets), -1).mean(dim=1)

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """Bits a token at one masking rate; the bound on the likelihood needs all rates: see `bits`."""
        return self.loss(prediction, targets) / math.log(2)

    def weight(self, level: Tensor, kind: Literal["unit", "edm"]) -> Tensor:
        """1/rate, the weight of the bound, for every `kind`."""
        return 1 / level

    def prior(self, shape: torch.Size, level: float, generator: torch.Generator) -> Tensor:
        return torch.full(shape, self.mask)

    def advance(
        self, z: Tensor, prediction: Tensor, level: float, to: float, generator: torch.Generator
    ) -> Tensor:
        """Ancestral sampling: each masked token is drawn with probability 1 - to/level, and then stays."""
        u = torch.rand(z.shape, generator=generator, device=generator.device).to(z.device)
        cumulative = prediction.softmax(dim=-1).cumsum(dim=-1)
        v = torch.rand(z.shape, generator=generator, device=generator.device).to(z.device)
        drawn = torch.searchsorted(cumulative, v[..., None] * cumulative[..., -1:])[..., 0]
        unmasked = (z == self.mask) & (u >= to / level)
        return torch.where(unmasked, drawn.clamp(max=self.vocabulary - 1), z)

    @torch.no_grad()
    def complete(self, shown: Tensor, generator: torch.Generator) -> Tensor:
        """Tokens (N, T) in [0, V): those that `shown` (N, T) masks are drawn given the others, which stay."""
        shown = shown.to(self.device)
        contexts = self.contexts(shown.clamp(max=self.vocabulary - 1))
        return run_chain(
            self,
            shown.shape,
            lambda block, z, level: self.predict(block, z, level, contexts[block]),
            generator,
            start=shown,
        )[1]

    def chain_quality(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> list[float]:
        """The bound after each block, in bits a token."""
        parts = [self.bits(tokens, generator) for tokens in targets.to(self.device).split(_AT_ONCE)]
        return [float(b) for b in torch.cat(parts, dim=1).mean(dim=1)]

    @torch.no_grad()
    def bits(self, targets: Tensor, generator: torch.Generator, draws: int = 8) -> Tensor:
        """Upper bound on the bits a token of each example, after each block: (B, N).

        After block b: blocks 0 to b in their own intervals, and block b also in all later ones. `draws` rates for
        each example and interval, one in each of as many strata. Divided by the same average of 1/t [z = MASK], which
        is 1 in expectation: a ratio estimate, with less variance from the random number of masked tokens.
        """
        blocks, n = self.partition.blocks, len(targets)
        found = torch.zeros(blocks, n, device=targets.device)
        # Rates below the law's lowest, at which almost nothing is masked, are also the last block's.
        edges = (*self.partition.edges[:-1], 0.0)
        for owner in range(blocks):
            low, high = edges[owner + 1], edges[owner]
            cost = torch.zeros(blocks, n, device=targets.device)
            masked = 0.0
            for stratum in range(draws):
                u = torch.rand(n, generator=generator, device=generator.device)
                # 1 - u is in (0, 1]: a rate of zero has no weight 1/rate.
                rate = low + (high - low) * (stratum + 1 - u) / draws
                noise = torch.rand(targets.shape, generator=generator, device=generator.device)
                draw = Draw(rate, noise).to(targets.device)
                z = self.corrupt(targets, draw)
                share = (z == self.mask).float().mean(dim=1)
                masked += float((share / draw.level).mean()) / draws
                for b in range(owner + 1):
                    prediction = self.predict(b, z, draw.level, self.context(b, targets))
                    cost[b] += self.score(prediction, targets) / draw.level / draws
            cost = (high - low) * cost / masked
            # Later blocks do not change the cost of this interval.
            found += torch.cat([cost[: owner + 1], cost[owner].expand(blocks - owner - 1, n)])
        return found
