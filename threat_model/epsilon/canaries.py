"""Canaries: made-up examples whose gradients are orthogonal and exactly as long as the clip, in the run's mechanism.

A canary's gradient is +-1 on its own coordinates, which are drawn at random over the whole block, and 0 elsewhere.
The mechanism trains a table of as many weights as the block has, of which a canary reads its own coordinates; so
clipping, sums, noise, batches and steps are the company's own code on the objects that its plan makes. Of all that
could be released this is the case that an account is about: no other gradient hides a canary, none is shorter than
the clip allows, and every one takes part unless sampling leaves it out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...errors import InputError
from ...privacy.clipping import pass_size
from ...privacy.dp_sgd import DPSGD
from ...privacy.randomness import Randomness
from ...privacy.sampling import PoissonSampling, Sampling
from ...privacy.secure_step import SecureStep
from ..releases import clip_of

Array = npt.NDArray[np.float64]
Coins = npt.NDArray[np.bool_]
_LENGTH = 1024.0  # clips; so long before it is clipped that every way of clipping makes it the clip
_WIDEST = 64  # coordinates; the cost of a norm grows with their square
_SMALLEST_SHARE = 1e-4  # noise in whole numbers cannot be switched off


@dataclass(frozen=True)
class Canaries:
    """`count` canaries for a block of `size` values, by `seed`.

    canaries = Canaries(size=block_size, count=1000, seed=0)
    vector = release(mechanism, canaries, inside, randomness)      # (P,) a sum of gradients with noise
    scores = canaries.scores(vector)                               # (m,), 1 higher for those inside

    Raises:
        InputError: there are more canaries than values, so that they cannot be orthogonal.
    """

    size: int
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= self.size:
            raise InputError("canaries", self.count, f"expected 1 to {self.size}, the values of the block")

    @property
    def width(self) -> int:
        """Coordinates of one canary."""
        return min(self.size // self.count, _WIDEST)

    @cached_property
    def _places(self) -> npt.NDArray[np.int64]:
        """(m, width) its own coordinates."""
        order = Randomness.from_seed(self.seed, "canaries' coordinates").permutation(self.size)
        return order[: self.count * self.width].reshape(self.count, self.width)

    @cached_property
    def _signs(self) -> Array:
        """(m, width) +-1 / sqrt(width)."""
        coins = Randomness.from_seed(self.seed, "canaries' signs").bernoulli(self.count * self.width, 0.5)
        signs: Array = np.where(coins, 1.0, -1.0).reshape(self.count, self.width) / self.width**0.5
        return signs

    def losses(self, block: nn.Embedding, which: npt.NDArray[np.int64], length: float) -> Tensor:
        """(n,) losses whose gradients in the block's weights are the directions of length 1, times `length`."""
        signs = torch.from_numpy(length * self._signs[which]).to(block.weight.dtype)
        values: Tensor = block(torch.from_numpy(self._places[which]))[:, :, 0]  # (n, width)
        return (signs * values).sum(1)

    def scores(self, vector: Array) -> Array:
        """Inner products (m,) of a vector (P,) with the directions."""
        found: Array = (vector[self._places] * self._signs).sum(1)
        return found


def release(
    mechanism: DPSGD | SecureStep,
    canaries: Canaries,
    inside: Coins,
    randomness: Randomness,
    others: Randomness,
    *,
    sampled: bool = False,
    noise: float = 1.0,
) -> Array:
    """The sum over the mechanism's steps of the gradients of the canaries that are `inside` (m,), with its noise,
    (P,) in clips.

    `others`: of the other companies whose shares of a common noise the account counts on. `sampled`: batches are
    drawn as in training; else each canary takes part in every step, or once an epoch. `noise`: a factor, 0 for a
    control.
    """
    members = np.flatnonzero(inside)
    clip = clip_of(mechanism)
    block = nn.Embedding(canaries.size, 1, _weight=torch.zeros(canaries.size, 1))

    def losses(indices: Tensor, draws: int) -> Tensor:
        return canaries.losses(block, members[indices.numpy()], _LENGTH * clip)

    if isinstance(mechanism, SecureStep):
        rate = mechanism.sampling_rate if sampled else 1.0
        shared = replace(
            mechanism, sampling_rate=rate, noise_draws=1,
            examples_at_once=_at_once(canaries, rate * len(members)),
            noise=replace(
                mechanism.noise, noise_multiplier=max(noise, _SMALLEST_SHARE) * mechanism.noise.noise_multiplier
            ),
        )  # fmt: skip
        residues = shared.encode(block, losses, examples=len(members), randomness=randomness)
        for _ in range(shared.noise.companies - shared.noise.tolerated - 1):
            residues += shared.noise.encode(np.zeros(canaries.size), others)
        residues &= np.uint32((1 << shared.noise.bits) - 1)
        return shared.noise.decode_sum(residues) / clip
    sampling: Sampling = mechanism.sampling
    if not sampled and isinstance(sampling, PoissonSampling):
        sampling = PoissonSampling(1.0)
    rate = sampling.rate if isinstance(sampling, PoissonSampling) else 1.0
    quantile = mechanism.quantile_clip
    if quantile is not None:
        quantile = replace(quantile, count_noise=noise * quantile.count_noise)
    step = replace(
        mechanism, sampling=sampling, noise_multiplier=noise * mechanism.noise_multiplier, noise_draws=1,
        quantile_clip=quantile, examples_at_once=_at_once(canaries, rate * len(members)),
    )  # fmt: skip
    update = step.train(block, losses, examples=len(members), randomness=randomness)
    found: Array = update.cpu().numpy() * (-mechanism.expected_batch_size / mechanism.learning_rate / clip)
    return found


def _at_once(canaries: Canaries, expected: float) -> int:
    return pass_size(expected, canaries.count)
