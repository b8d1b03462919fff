"""Canaries: made-up examples whose gradients are orthogonal and exactly as long as the clip, in the run's mechanism.

A canary's gradient is +-1 on its own coordinates, which are drawn at random over the whole block, and 0 elsewhere. The
mechanism trains a linear map of as many weights as the block has, whose gradient is whatever its input is; so
clipping, sums, noise, batches and steps are the company's own code on the objects that its plan makes. Of all that
could be released this is the case that an account is about: no other gradient hides a canary, none is shorter than the
clip allows, and every one takes part unless sampling leaves it out.
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
_VALUES_AT_ONCE = 1 << 24
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
        return self.size // self.count

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

    def rows(self, which: npt.NDArray[np.int64]) -> Tensor:
        """Directions (n, P) float32 of length 1."""
        found = np.zeros((len(which), self.size), dtype=np.float32)
        found[np.arange(len(which))[:, None], self._places[which]] = self._signs[which]
        return torch.from_numpy(found)

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
    block = nn.Linear(canaries.size, 1, bias=False)
    nn.init.zeros_(block.weight)

    def losses(indices: Tensor, draws: int) -> Tensor:
        rows = canaries.rows(members[indices.numpy()]) * (_LENGTH * clip)
        found: Tensor = block(rows)[:, 0]
        return found

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
    return pass_size(expected, max(1, min(canaries.count, _VALUES_AT_ONCE // canaries.size)))
