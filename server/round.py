"""One round, top to bottom: a block goes out, one masked sum comes back, the block moves.

The coordinator sees adverts, masked vectors and shares; of the updates it learns the sum alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..blocks import digest
from ..blocks.state import State, flatten, unflatten
from ..errors import ProtocolError
from ..privacy.secure_aggregation import Session, lowest_threshold
from ..protocol.release import mean_update, sum_label
from ..settings import Plan
from .assignment import Task
from .cohort import Cohort
from .influence import largest_mean
from .optimizer import BlockOptimizer
from .plain_sums import PlainSums
from .release_log import OpenedSum, OpenedSums
from .secure_sum import Absences, SecureSum


@dataclass
class RoundResult:
    """What a round did; `status` is "done", or the code that ended it with the block unchanged."""

    round: int
    block: int
    status: str = "done"
    survivors: tuple[str, ...] = ()
    absent: dict[str, tuple[str, str]] = field(default_factory=dict)
    update_norm: float = 0.0


def run_round(
    round_: int,
    task: Task,
    states: dict[int, State],
    names: list[str],
    optimizer: BlockOptimizer,
    cohort: Cohort | PlainSums,
    plan: Plan,
    attempt: str = "",
    kept: OpenedSums | None = None,
) -> tuple[State, RoundResult, OpenedSum | None]:
    """Train a block once over its companies; its new state, and the sum. Below the threshold nothing is opened.

    `states`: the block's own and those that it reads; `names`: its trainable tensors, as `state` has them. `attempt`:
    see `sum_label`; a session's keys serve once, so a round that is begun anew needs another. `kept`: where a sum is
    kept until its round is over, and found again after a crash.
    """
    absences = Absences()
    block, companies = task.block, task.companies
    state = states[block]
    result = RoundResult(round_, block, absent=absences.why)

    # 1. Session: cohort, model and settings are fixed, and every company's keys are bound to them.
    session = Session(
        run=plan.run,
        round=round_,
        label=sum_label(block, attempt),
        model_digest=digest(*states.values()),
        settings_digest=cohort.settings_digest,
        cohort=companies,
        threshold=threshold_of(plan, len(companies)),
        length=sum(state[name].numel() for name in names),
        bits=plan.bits,
    )

    # 2. Sum: keys, training, survivors confirmed, masks removed; unless a crash came after that.
    opened = None if kept is None else kept.find(round_, block, companies, session.model_digest)
    if opened is None:
        try:
            if isinstance(cohort, PlainSums):
                residues, summed = cohort.total(session, block, states, absences)
            else:
                secure_sum = SecureSum(session, cohort, f"round-{round_}-block-{block}", absences)
                adverts = secure_sum.keys()
                survivors = secure_sum.train(block, states, adverts)
                confirmations = secure_sum.confirm(survivors)
                residues, summed = secure_sum.unmask(confirmations)
        except ProtocolError as error:
            result.status = error.code
            return state, result, None
        opened = OpenedSum(companies, summed, session.model_digest, residues)
        if kept is not None:
            kept.keep(round_, block, opened)
    residues, summed = opened.residues, opened.survivors

    # 3. Check: nobody moved the mean further than all clips together allow.
    mean = torch.from_numpy(mean_update(plan, residues, len(companies), len(summed)))
    if not float(mean.norm()) <= largest_mean(plan, len(mean), len(companies), len(summed)):
        result.status = "oversized_sum"
        return state, result, opened

    # 4. Apply: the mean update moves the block through the server optimiser.
    old = [state[name] for name in names]
    new = unflatten(optimizer.step(flatten(old), mean), old)
    result.survivors = summed
    result.update_norm = float(mean.norm())
    return state | dict(zip(names, new, strict=True)), result, opened


def threshold_of(plan: Plan, companies: int) -> int:
    """How many of a sum's companies have to take part to its end."""
    return max(plan.threshold(companies) or 0, lowest_threshold(companies, plan.colluders))
