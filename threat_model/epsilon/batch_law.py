"""Whether batches are drawn as they are accounted.

The object that draws them is asked for many; and what the recorded steps read is compared with what was drawn for
them. Shuffled batches have nearly one size, Poisson batches do not: the variance of sizes tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from ...privacy.randomness import Randomness
from ...privacy.sampling import Sampling
from . import checks
from .checks import Check
from .promise import Promise
from .recording import StepRecord

_COINS = 2_000_000  # of all batches together
_LEAST, _MOST = 200, 4_000  # batches
Batches = list[npt.NDArray[np.int64]]


def batch_checks(
    draws: Sampling,
    recorded: Sequence[StepRecord],
    promise: Promise,
    examples: int,
    steps: int,
    randomness: Randomness,
    level: float,
) -> list[Check]:
    """`recorded`: steps of the company; `steps`: of one release, for each of which batches are drawn anew."""
    wrong = sum(not (s.drawn == s.loaded and len(s.drawn) == s.examples) for s in recorded)
    found = [
        checks.within(
            "steps on other batches", wrong, 0, len(recorded),
            f"of {len(recorded)} steps summed other examples than were drawn for them",
        )
    ]  # fmt: skip
    count = math.ceil(min(max(_COINS // examples, _LEAST), _MOST) / steps)
    drawn = ([b.numpy() for b in draws.batches(examples, steps, randomness)] for _ in range(max(2, count)))
    if promise.sampling_rate is not None:
        return found + _poisson(drawn, examples, promise.sampling_rate, level)
    return found + _epochs(drawn, examples, promise, level)


def _poisson(drawn: Iterable[Batches], examples: int, q: float, level: float) -> list[Check]:
    """Sizes are binomial, and an example is in a batch whatever else is in it or in the others."""
    sizes, shared = [], 0
    joined = np.zeros(examples)  # by example, the batches that it was in
    before = np.zeros(0, dtype=np.int64)
    for batch in chain.from_iterable(drawn):
        sizes.append(len(batch))
        joined[batch] += 1
        shared += len(np.intersect1d(before, batch, assume_unique=True))
        before = batch
    found = [checks.rate(sum(sizes), examples * len(sizes), q, level, "sampling rate / promised")]
    if q == 1:
        return found
    return [
        *found,
        checks.dispersion(np.array(sizes, float), examples, q, level, "variance of batch sizes / promised"),
        checks.dispersion(joined, len(sizes), q, level, "variance of an example's batches / promised"),
        checks.overlap(shared, examples, len(sizes), q, level),
    ]


def _epochs(drawn: Iterable[Batches], examples: int, promise: Promise, level: float) -> list[Check]:
    """Every example is in one batch of an epoch, each equally likely, whichever it was in before."""
    b, wrong = promise.epoch_steps, 0
    places = []  # of each release (epochs, n): the batch that an example is in
    for batches in drawn:
        epochs = np.zeros((len(batches) // b, examples), dtype=np.int64)
        for epoch, row in enumerate(epochs):
            joined = np.zeros(examples, dtype=np.int64)
            for number, batch in enumerate(batches[epoch * b : (epoch + 1) * b]):
                row[batch] = number
                joined[batch] += 1
            wrong += int((joined != 1).sum())
        places.append(epochs)
    found = [
        checks.within(
            "examples not once an epoch", wrong, 0, sum(map(len, places)) * examples,
            "examples were not in exactly one batch of an epoch",
        )
    ]  # fmt: skip
    if b == 1:
        return found
    if not promise.regroup:
        moved = sum(int((each != each[0]).sum()) for each in places)
        reason = "examples changed their batch within a release"
        found.append(checks.within("examples whose batch changed", moved, 0, len(places), reason))
        places = [each[:1] for each in places]
    order = np.concatenate(places)  # (epochs, n)
    again = int((order[1:] == order[:-1]).sum())
    sizes = np.stack([np.bincount(row, minlength=b) for row in order]).astype(float)
    return [
        *found,
        checks.pearson(sizes, level, "variance of batch sizes / promised"),
        checks.rate(again, order[1:].size, 1 / b, level, "examples in the same batch again / expected"),
    ]
