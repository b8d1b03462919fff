"""The units of privacy of a company's data: its examples, or where the plan says so its groups of records.

A group (a person, a document) is one example of the mechanism and of the account. Poisson sampling draws groups; each
drawn group shows `training.records_per_group` of its records, their mean gradient is clipped once, and so a group
moves the sum by at most the clip, whether it has one record or 10,000. Which records are shown is drawn anew every
time, for each group by itself: that depends on nobody else's records, and a group's own part is bounded whatever it
shows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..blocks.examples import Examples, Groups
from ..errors import ProtocolError
from ..privacy.randomness import Randomness
from ..settings import Plan


def groups_of(plan: Plan, data: Examples) -> Groups | None:
    """The data's groups, where they are the plan's unit; none where each example is one.

    Raises: ProtocolError("no_data") where the data do not say the groups that the plan is about.
    """
    column = plan.training.group
    if column is None:
        return None
    if data.groups is None or data.groups.column != column:
        there = "none" if data.groups is None else f"those of column {data.groups.column!r}"
        text = (
            f"the plan's unit of privacy is the group by column {column!r}, the data name {there}: import them anew, "
            f"by a contract with group = {column!r}"
        )
        raise ProtocolError("no_data", text)
    return data.groups


def units(plan: Plan, data: Examples) -> int:
    """How many units of privacy the data have; raises as `groups_of`."""
    groups = groups_of(plan, data)
    return len(data) if groups is None else len(groups)


def drawn_records(groups: Groups, numbers: Tensor, records: int, randomness: Randomness) -> Tensor:
    """(n * records,) places of records: of the groups of these numbers (n,), `records` each side by side.

    Without replacement, in random order; a group with fewer shows all of them equally often, but for the rest of the
    division. All records are shuffled, drawn or not: the time it takes tells only how many there are.
    """
    order = randomness.permutation(len(groups.numbers))
    order = order[
        np.argsort(groups.numbers[order], kind="stable")
    ]  # each group's side by side, in random order
    first = np.cumsum(groups.sizes) - groups.sizes  # (G,)
    chosen = numbers.numpy()
    rank = np.arange(records) % groups.sizes[chosen][:, None]  # (n, records)
    return torch.from_numpy(order[first[chosen][:, None] + rank].reshape(-1))
