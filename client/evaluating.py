"""A company's part in a federated evaluation: the sum of its held-out examples' scores and their number, with noise.

An example's score is that of a pass of its own: one row in memory of its own, and starting noise by the example's own
digest. So what it adds does not depend on which other examples there are, to the last bit, and one example more or
less moves the sum by at most its own contribution. A view into the set would not do: where a row begins in memory
decides how some kernels round, so one example more would move all rows after it, and weights can be made that turn a
last bit into another score.

Where the plan's unit of privacy is a group of records, each held-out group adds the mean of what its records would:
a mean of contributions is no longer than the longest, so a group moves the sum by no more than a record did.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch

from ..blocks import Denoiser
from ..blocks.examples import Examples
from ..privacy.denormals import flushed
from ..privacy.randomness import Randomness
from ..protocol.evaluation import Vector, contribution, encoded, length, mean_contribution
from ..settings import Plan
from .units import groups_of

_SEED_BYTES = 4  # as many as a generator of PyTorch uses


def evaluated(
    model: Denoiser, held_out: Examples | None, plan: Plan, companies: int, randomness: Randomness
) -> npt.NDArray[np.uint32]:
    """The company's input to the secure sum, (length,) residues; without held-out examples it is noise alone."""
    try:
        total = flushed(lambda: summed(model.eval(), held_out, plan))
    finally:
        model.train()  # trainings of other blocks use it too
    return encoded(plan, companies, total, randomness)


def summed(model: Denoiser, held_out: Examples | None, plan: Plan) -> Vector:
    """The sum of all contributions, (length,), without noise."""
    total = np.zeros(length(plan))
    if held_out is None:
        return total
    groups = groups_of(plan, held_out)
    if groups is None:
        for i in range(len(held_out)):
            total += contribution_of(model, held_out[torch.tensor([i])], plan)  # a copy
        return total
    order = np.argsort(groups.numbers, kind="stable")
    for own in np.split(order, np.cumsum(groups.sizes)[:-1]) if len(groups) else ():
        each = [contribution_of(model, held_out[torch.tensor([i])], plan) for i in own.tolist()]
        total += mean_contribution(each)
    return total


def contribution_of(model: Denoiser, example: Examples, plan: Plan) -> Vector:
    """What one record, a set of one, adds to the sum."""
    seed = int.from_bytes(hashlib.sha256(example.digest).digest()[:_SEED_BYTES], "big")
    generator = torch.Generator().manual_seed(seed)
    value = model.chain_quality(example.inputs, example.targets, generator)[-1]
    label = (
        int(example.targets[0])
        if example.targets.ndim == 1 and not example.targets.is_floating_point()
        else 0
    )
    return contribution(plan, value, label)
