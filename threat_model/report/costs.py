"""What a run costs: time as it was measured, and bytes as they follow from plan and rounds."""

from __future__ import annotations

from collections import Counter
from operator import itemgetter
from statistics import median
from typing import Any

from ...blocks import build_model
from ...blocks.size import parameters_of
from ...protocol.release import blocks_read
from ...settings import Plan
from .document import Costs


def state_bytes(plan: Plan) -> int:
    """Of a block's state as it travels to companies: all of its tensors but personal and pinned ones."""
    model = build_model(plan.model, plan.noise, 0)
    groups, tensors = model.groups(0, plan.training.interface), model.state_dict()
    return sum(tensors[name].nbytes for name, group in groups.items() if group not in ("personal", "pinned"))


def largest_state(plan: Plan) -> int:
    """Bytes of the states that a company receives to train the last of the run's blocks."""
    return state_bytes(plan) * len(blocks_read(plan, plan.trained_blocks[-1]))


def costs(
    plan: Plan,
    rounds: list[dict[str, Any]],
    size: int,
    seconds: float | None,
    audit: float | None,
) -> Costs:
    """`rounds`: the run's lines of metrics. Of a company that took part in every round; where cohorts are drawn, of
    the one that was in most sums."""
    up = down = everybody = 0
    sent, state = -(-size * plan.bits // 8), state_bytes(plan)
    tasks = [task for row in rounds for task in row.get("tasks", ())]
    summed = Counter(name for task in tasks for name in task["survivors"])
    most, _ = max(summed.items(), key=itemgetter(1), default=("", 0))
    for task in tasks:
        everybody += sent * len(task["survivors"])
        if plan.drawn is None or most in task["survivors"]:
            up += sent
            down += state * len(blocks_read(plan, task["block"]))
    times = [row["seconds"] for row in rounds if isinstance(row.get("seconds"), int | float)]
    if plan.training.assignment == "parallel" and plan.drawn is None:
        # A company trains one of the blocks of a round.
        up, down = up // len(plan.trained_blocks), down // len(plan.trained_blocks)
    return Costs(
        rounds=len(rounds),
        seconds=seconds,
        seconds_a_round=median(times) if times else None,
        audit_seconds=audit,
        parameters=parameters_of(plan.model),
        bytes_up_a_company=up,
        bytes_down_a_company=down,
        bytes_all_companies=everybody,
    )


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:,.1f} kB"
