"""What one company may do to the model, checked on the coordinator's side: on the opened sum, and on public data.

The clip of an update is each company's own duty, and nobody can see a single update. But honest ones leave traces
in the sum: its norm is at most the number of companies times the clip (`largest_mean`). And a group's sum can be
left out: if the model is better on public data without it, the group is flagged (`leave_group_out`; Xie et al. 2019,
"Zeno", rank single gradients like this).

What this does not do: a company that stays within its clip, and harms slowly or only on inputs that the public data
do not have, passes both. A sum that is thrown away was still paid for by every company, so one company can waste the
others' budget; which one it is, secure aggregation hides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..blocks import Denoiser, merge
from ..blocks.state import State
from ..protocol.release import codec, secure_step
from ..settings import InfluenceSettings, Plan

# The noise of a secure step passes its bound with a probability of 2^-40.
_TAIL = 40 * math.log(2)


def largest_mean(plan: Plan, size: int, companies: int, survivors: int) -> float:
    """L2 norm that the mean update of `size` values cannot pass if every survivor kept to its clip.

    With shares of noise in the sum it can, but for a chance of 2^-40 (Laurent & Massart 2000, lemma 1).
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
    """What leaving one group's sum out does to the metric on public data."""

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
    """For every (block, companies) of a round the model's `quality` with all sums and without this one.

    `before` and `after` are the blocks' states around the round. The model ends with all of them as after.
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
        # A model that is no number any more is worse than any.
        flagged = not math.isfinite(whole) or gained > settings.tolerance
        effects.append(GroupEffect(block, companies, whole, without, flagged, flagged and settings.discards))
    return effects
