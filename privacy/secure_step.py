"""Secure steps: one DP-SGD step of which only the sum over companies is opened, with one common noise.

Every company adds a share of Skellam noise to its sum of clipped gradients; all shares together are the noise of one
release (Agarwal, Kairouz, Liu 2021). That holds for sums of single steps only: a company that takes several steps
before it sends must add its full noise to each, since its later steps depend on its own earlier ones.

Every company draws its own Poisson batch; together they are one Poisson batch, so amplification is accounted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from .clipping import Clipping, PerExampleClipping
from .dp_sgd import Losses, clip_to_norm, in_random_order
from .events import SharedSkellamSteps
from .mechanisms.skellam import BETA, SkellamNoise
from .randomness import Randomness
from .sampling import PoissonSampling


@dataclass(frozen=True, kw_only=True)
class SecureStep:
    """`noise` says how many companies share it and how many it tolerates: `colluders`, the others as dropouts.
    `largest_sum` bounds the norm of one company's sum. `records`: as in `DPSGD`.

    Projection on a ball increases no distance, so this bound costs no privacy.
    """

    sampling_rate: float
    noise: SkellamNoise
    colluders: int
    largest_sum: float
    noise_draws: int
    clipping: Clipping = "flat"
    examples_at_once: int = 128
    records: int = 1

    @property
    def event(self) -> SharedSkellamSteps:
        """What every company's ledger is charged; it counts the noise of honest companies only."""
        return step_event(self.noise, self.sampling_rate, self.colluders)

    def encode(
        self, block: nn.Module, losses: Losses, *, examples: int, randomness: Randomness
    ) -> NDArray[np.uint32]:
        """The company's clipped sum with its share of the noise, as residues (P,); `losses` as in `DPSGD.train`."""
        (drawn,) = PoissonSampling(self.sampling_rate).batches(examples, 1, randomness)
        batch = in_random_order(drawn, randomness)
        with PerExampleClipping(
            block,
            max_grad_norm=self.noise.clip,
            clipping=self.clipping,
            examples_at_once=self.examples_at_once,
        ) as clipping:
            clipped = clipping.sum(
                lambda places: losses(batch[places], self.noise_draws),
                examples=len(batch),
                draws=self.noise_draws,
                records=self.records,
            )
        bounded = clip_to_norm(clipped.vector, self.largest_sum)
        return self.noise.encode(bounded.cpu().numpy(), randomness)


def step_event(noise: SkellamNoise, sampling_rate: float, colluders: int) -> SharedSkellamSteps:
    """What a step costs: the noise that honest companies have put into the sum."""
    return SharedSkellamSteps(
        sampling_rate=sampling_rate,
        steps=1,
        l2=noise.l2,
        l1=noise.l1,
        variance=noise.variance_total,
        beta=BETA,
        shares=noise.companies - noise.tolerated,
        colluders=colluders,
    )
