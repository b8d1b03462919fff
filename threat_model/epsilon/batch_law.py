"""Whether batches are drawn as they are accounted.

The object that draws them is asked for many; and what the recorded steps read is compared with what was drawn for
them. Shuffled batches have nearly one size, Poisson batches do not: the variance of sizes tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...privacy.randomness import Randomness
from ...privacy.sampling import Sampling
from . import checks
from .checks import Check
from .promise import Promise

_COINS = 2_000_000  # of all batches together
_LEAST, _MOST = 400, 4_000  # batches


def batch_checks(
    draws: Sampling,
    recorded: Sequence[tuple[set[int], set[int], int]],
    promise: Promise,
    examples: int,
    randomness: Randomness,
    level: float,
) -> list[Check]:
    """`recorded`: of each step, the batch drawn, the examples read, and how many were summed."""
    wrong = sum(not (drawn == read and len(drawn) == n) for drawn, read, n in recorded)
    found = [
        checks.within(
            "steps on other batches", wrong, 0, len(recorded),
            f"of {len(recorded)} steps summed other examples than were drawn for them",
        )
    ]  # fmt: skip
    steps = min(max(_COINS // examples, _LEAST), _MOST)
    if promise.sampling_rate is not None:
        batches = [batch.numpy() for batch in draws.batches(examples, steps, randomness)]
        return found + _poisson(_table(batches, examples), promise.sampling_rate, level)
    return found + _epochs(draws, promise, examples, steps, randomness, level)


def _table(batches: Sequence[npt.NDArray[np.int64]], examples: int) -> npt.NDArray[np.bool_]:
    """(T, n): which example is in which batch."""
    table = np.zeros((len(batches), examples), dtype=bool)
    for row, batch in zip(table, batches, strict=True):
        row[batch] = True
    return table


def _poisson(table: npt.NDArray[np.bool_], q: float, level: float) -> list[Check]:
    """Sizes are binomial, and an example is in a batch whatever else is in it or in the others."""
    steps, n = table.shape
    sizes = table.sum(1)
    found = [checks.rate(int(sizes.sum()), n * steps, q, level, "sampling rate / promised")]
    if q == 1:
        return found
    shared = int((table[1:] & table[:-1]).sum())
    return [
        *found,
        checks.dispersion(sizes.astype(float), n, q, level, "variance of batch sizes / promised"),
        checks.dispersion(
            table.sum(0).astype(float), steps, q, level, "variance of an example's batches / promised"
        ),
        checks.overlap(shared, n, steps, q, level / 10),
    ]


def _epochs(
    draws: Sampling, promise: Promise, examples: int, steps: int, randomness: Randomness, level: float
) -> list[Check]:
    """Every example is in one batch of an epoch, each equally likely, whichever it was in before."""
    b = promise.epoch_steps
    releases = max(2, steps // (2 * b))
    # (releases, 2 epochs, b, n)
    table = np.stack(
        [
            _table([x.numpy() for x in draws.batches(examples, 2 * b, randomness)], examples)
            for _ in range(releases)
        ]
    ).reshape(releases, 2, b, examples)
    most = int(np.abs(table.sum(2) - 1).max())
    found = [
        checks.within(
            "examples not once an epoch", most, 0, releases * 2 * examples,
            "more or fewer batches of one epoch than one hold an example",
        )
    ]  # fmt: skip
    if b == 1:
        return found
    place = table.argmax(2)  # (releases, 2, n)
    again = int((place[:, 0] == place[:, 1]).sum())
    if promise.regroup:
        once, chance = table.reshape(-1, b, examples), examples * releases
        found.append(checks.rate(again, chance, 1 / b, level, "examples in the same batch again / expected"))
    else:
        once = table[:, 0]
        off = examples * releases - again
        found.append(
            checks.within("examples whose batch changed", off, 0, examples, "examples changed their batch")
        )
    found.append(checks.pearson(once.sum(2).astype(float), level, "variance of batch sizes / promised"))
    between = int((place[1:, 0] == place[:-1, 0]).sum())
    found.append(
        checks.rate(
            between, examples * (releases - 1), 1 / b, level, "examples in a release's batch again / expected"
        )
    )
    return found
