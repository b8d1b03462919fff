"""Block assignment: which companies train which block in a round.

`sequential`  the whole cohort trains one block a round, first to last and again: largest anonymity set
`parallel`    disjoint groups train different blocks at once, never below the minimum cohort; each company's
              ledger composes over its own releases only, and each group moves to the next block every round
`all`         the whole cohort trains every block every round: B releases a round
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..settings import Plan, groups_of


@dataclass(frozen=True)
class Task:
    """One block and the companies that train it together."""

    block: int
    companies: tuple[str, ...]


def assign(round_: int, companies: tuple[str, ...], plan: Plan) -> list[Task]:
    """The tasks of a round, rounds counted from 1; depends on the arguments only, so a resumed run agrees.

    Raises:
        InputError: the cohort is below the plan's minimum.
    """
    blocks = plan.trained_blocks
    if plan.training.assignment == "all":
        return [Task(b, companies) for b in blocks]
    if plan.training.assignment == "sequential":
        return [Task(blocks[(round_ - 1) % len(blocks)], companies)]
    count = groups(len(companies), len(blocks), plan.secure_aggregation.minimum_cohort)
    # Groups are fixed as the cohort is: the difference of two cohorts' sums could isolate one company.
    return [Task(blocks[(round_ - 1 + g) % len(blocks)], companies[g::count]) for g in range(count)]


def groups(companies: int, blocks: int, minimum_cohort: int) -> int:
    """`groups_of`; InputError for a cohort below the minimum."""
    count = groups_of(companies, blocks, minimum_cohort)
    if count < 1:
        raise InputError("companies.count", companies, f"must reach minimum_cohort={minimum_cohort}")
    return count
