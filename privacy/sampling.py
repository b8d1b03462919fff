"""Ways to draw batches, each with the event that accounts for it.

Purpose: no batch is drawn one way and accounted another. A scheme yields the batches of a release and builds their
event; accounting another scheme as Poisson sampling may under-report by far (Chua et al. 2024,
https://arxiv.org/abs/2403.17673).

    sampling = PoissonSampling(0.01)
    for batch in sampling.batches(len(data), steps=100, randomness=randomness):  # (batch,) int64, ascending
        ...                                                                      # may be empty: add noise anyway
    ledger.charge(..., terms=Terms(sampling.event(noise_multiplier, 100, len(data), dimension=size), releases=60))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .events import (
    MAX_EXAMPLES,
    EpochGaussian,
    Event,
    GaussianSteps,
    TruncatedGaussianSteps,
    count,
    real,
)
from .randomness import Randomness


class Sampling(Protocol):
    """A way to draw batches."""

    def batches(self, examples: int, steps: int, randomness: Randomness) -> Iterator[Tensor]:
        """`steps` batches of indices below `examples`, (batch,) int64 ascending; drawn as they are asked for."""
        ...

    def event(
        self, noise_multiplier: float, steps: int, examples: int | None = None, dimension: int | None = None
    ) -> Event:
        """The event of `steps` noisy sums of `dimension` values over these batches; `examples`, where the account
        needs it: the size of the data set."""
        ...


@dataclass(frozen=True)
class PoissonSampling:
    """Every example joins independently with probability `rate`; a batch above `batch_cap` keeps a random subset.

    A cap bounds memory, and is accounted: for n examples a cap of n q + 5 sqrt(n q (1 - q)), which one batch in 3
    million exceeds, costs little.
    """

    rate: float
    batch_cap: int | None = None

    def __post_init__(self) -> None:
        if not 0 < real("sampling_rate", self.rate) <= 1:
            raise InputError("sampling_rate", self.rate, "must be above 0 and at most 1")
        if self.batch_cap is not None:
            count("batch_cap", self.batch_cap, MAX_EXAMPLES)

    def batches(self, examples: int, steps: int, randomness: Randomness) -> Iterator[Tensor]:
        for _ in range(steps):
            joined = np.flatnonzero(randomness.bernoulli(examples, self.rate))
            if self.batch_cap is not None and len(joined) > self.batch_cap:
                joined = joined[_subset(len(joined), self.batch_cap, randomness)]
            yield torch.from_numpy(joined)

    def event(
        self, noise_multiplier: float, steps: int, examples: int | None = None, dimension: int | None = None
    ) -> Event:
        if self.batch_cap is None:
            return GaussianSteps(
                sampling_rate=self.rate, noise_multiplier=noise_multiplier, steps=steps, dimension=dimension
            )
        return TruncatedGaussianSteps(
            sampling_rate=self.rate,
            noise_multiplier=noise_multiplier,
            steps=steps,
            examples=_needed(examples),
            batch_cap=self.batch_cap,
            dimension=dimension,
        )


@dataclass(frozen=True)
class EpochSampling:
    """Balls and bins: in every epoch each example goes independently into one of `batch_count` batches.

    A release begins a new epoch, and a partial epoch counts as a whole one. With `regroup` false all epochs of a
    release have the same batches, so that an example's steps are exactly `batch_count` apart.
    """

    batch_count: int
    regroup: bool = True

    def __post_init__(self) -> None:
        count("batch_count", self.batch_count)

    def batches(self, examples: int, steps: int, randomness: Randomness) -> Iterator[Tensor]:
        for step in range(steps):
            if step == 0 or (self.regroup and step % self.batch_count == 0):
                assignment = randomness.integers(self.batch_count, examples)  # (examples,) its batch
            yield torch.from_numpy(np.flatnonzero(assignment == step % self.batch_count))

    def event(
        self, noise_multiplier: float, steps: int, examples: int | None = None, dimension: int | None = None
    ) -> Event:
        epochs = -(-count("steps", steps) // self.batch_count)
        return EpochGaussian(noise_multiplier=noise_multiplier, epochs=epochs, dimension=dimension)


def _subset(n: int, size: int, randomness: Randomness) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """(size,) ascending: a uniformly random subset of 0 .. n - 1, by the smallest of n random keys."""
    # Two of the 53-bit keys are equal with probability below n^2 / 2^53.
    keys = randomness.uniform(n)
    return np.sort(np.argsort(keys, kind="stable")[:size]).astype(np.int64)


def _needed(examples: int | None) -> int:
    if examples is None:
        raise InputError("examples", examples, "this sampling's account needs the number of examples")
    return examples
