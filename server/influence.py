"""Checks of one company's influence on the model, on the coordinator's side: on the opened sum and on public data.

Each company clips its own update, and nobody else can see a single update. But if all companies clip, the norm of the
sum is at most their number times the clip (`largest_mean`). And a group's sum can be left out: if the model is better
on public data without it, the group is flagged (`leave_group_out`; Xie et al. 2019, "Zeno", rank single gradients
like this).

Limits: a company that keeps to its clip, and harms slowly or only on inputs that the public data lack, passes both
checks. Every company has paid for a sum that is discarded, so one company can waste the others' budget; secure
aggregation hides which one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..blocks import Denoiser, merge
from ..blocks.state import State
from ..protocol.release import codec, secure_step
from ..settings import InfluenceSettings, Plan

# The noise of a secure step exceeds its bound with a probability of 2^-40.
_TAIL = 40 * math.log(2)


def largest_mean(plan: Plan, size: int, companies: int, survivors: int) -> float:
    """Largest L2 norm of the mean update of `size` values if every survivor kept to its clip.

    With shares of noise in the sum it is exceeded with a probability of 2^-40 (Laurent & Massart 2000, lemma 1).
    """
    if not plan.secure_step:
        rounding = math.sqrt(size) / (2 * codec(plan, companies).scale)
        return plan.company_clip + rounding
    step = secure_step(plan, size, companies)
    noise = step.noise
    variance = survivors * noise.variance_share
    noise_norm = math.sqrt(variance * (size + 2 * math.sqrt(size * _TAIL) + 2 * _TAIL)) / noise.scale
    rounding = survivors * math.sqrt(size) / noise.scale
    total = survivors * step.largest_sum + rounding + noise_norm
    return plan.training.local_learning_rate / plan.training.expected_batch_size / survivors * total


@dataclass(frozen=True)
class GroupEffect:
    """The effect of leaving one group's sum out on the metric on public data."""

    block: int
    companies: tuple[str, ...]
    public_with: float
    public_without: float
    flagged: bool
    discarded: bool


def leave_group_out(
    model: Denoiser,
    before: Sequence[State],
    after: Sequence[State],
    groups: Sequence[tuple[int, tuple[str, ...]]],
    quality: Callable[[], float],
    settings: InfluenceSettings,
) -> list[GroupEffect]:
    """For every (block, companies) of a round: the model's `quality` with all sums, and without this one.

    `before` and `after` are the blocks' states before and after the round. The model ends in the state `after`.
    """
    merge(model, *after)
    whole = quality()
    sign = 1 if model.metric.higher_is_better else -1
    effects = []
    for block, companies in groups:
        merge(model, before[block])
        without = quality()
        merge(model, after[block])
        gained = sign * (without - whole) / max(abs(whole), 1e-12)
        # A model whose metric is not finite counts as worse than any other.
        flagged = not math.isfinite(whole) or gained > settings.tolerance
        effects.append(GroupEffect(block, companies, whole, without, flagged, flagged and settings.discards))
    return effects
