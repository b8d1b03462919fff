"""One round, top to bottom: a block goes out, one masked sum comes back, the block moves.

The coordinator sees adverts, masked vectors and shares; of the updates it learns the sum alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from ..blocks import digest
from ..blocks.state import State, flatten, unflatten
from ..errors import ProtocolError
from ..privacy.secure_aggregation import Aggregation, Session, lowest_threshold
from ..protocol.messages import (
    CONFIRM,
    KEYS,
    TRAIN,
    UNMASK,
    ConfirmReply,
    ConfirmRequest,
    KeysReply,
    KeysRequest,
    TrainReply,
    TrainRequest,
    UnmaskReply,
    UnmaskRequest,
)
from ..protocol.release import mean_update
from ..settings import Plan
from .assignment import Task
from .cohort import Absences, Cohort
from .influence import largest_mean
from .optimizer import BlockOptimizer

Item = TypeVar("Item")


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
    cohort: Cohort,
    plan: Plan,
) -> tuple[State, RoundResult]:
    """Train a block once over its companies; returns its new state. Below the threshold nothing is opened.

    `states`: the block's own and those that it reads; `names`: its trainable tensors, as `state` has them.
    """
    absences = Absences()
    block, companies = task.block, task.companies
    state = states[block]
    result = RoundResult(round_, block)
    group = f"round-{round_}-block-{block}"

    # 1. Fix cohort, model and settings: every company's keys are bound to them.
    session = Session(
        run=plan.run,
        round=round_,
        label=f"block-{block}",
        model_digest=digest(*states.values()),
        settings_digest=cohort.settings_digest,
        cohort=companies,
        threshold=max(plan.threshold(len(companies)) or 0, lowest_threshold(len(companies), plan.colluders)),
        length=sum(state[name].numel() for name in names),
        bits=plan.bits,
    )
    try:
        aggregation = Aggregation(session, cohort.roster)

        # 2. Keys: each company signs a fresh mask key and sends encrypted shares for its peers.
        channels = {company: cohort.channels[company] for company in companies}
        everyone = dict.fromkeys(companies, KeysRequest(session, channels).to_record())
        for company, key in cohort.ask(KEYS, group, everyone, KeysReply.from_record, absences).items():
            _accept(aggregation.add_advert, company, key.advert, KEYS, absences)
        adverts = aggregation.close_adverts()

        # 3. Train: each company charges its ledger, trains, clips, adds noise, masks and uploads.
        requests = TrainRequest.for_each(block, states, adverts)
        orders = {company: request.to_record() for company, request in requests.items()}
        for company, upload in cohort.ask(TRAIN, group, orders, TrainReply.from_record, absences).items():
            _accept(aggregation.add_masked, company, upload.masked, TRAIN, absences)
        survivors = aggregation.close_masked()

        # 4. Confirm: the survivors sign the one set that they were shown, each by its own rules.
        shown = dict.fromkeys(survivors.names, ConfirmRequest(survivors).to_record())
        for company, signed in cohort.ask(CONFIRM, group, shown, ConfirmReply.from_record, absences).items():
            _accept(aggregation.add_confirmation, company, signed.confirmation, CONFIRM, absences)
        confirmations = aggregation.close_confirmations()

        # 5. Unmask: who has signed releases what removes the masks of this sum, and of nothing less.
        proof = dict.fromkeys(confirmations.signatures, UnmaskRequest(confirmations).to_record())
        for company, answer in cohort.ask(UNMASK, group, proof, UnmaskReply.from_record, absences).items():
            _accept(aggregation.add_shares, company, answer.shares, UNMASK, absences)
        residues, summed = aggregation.open()
    except ProtocolError as error:
        result.status, result.absent = error.code, absences.why
        return state, result

    # 6. Check and apply: the mean update moves the block through the server optimiser.
    mean = torch.from_numpy(mean_update(plan, residues, len(companies), len(summed)))
    if not float(mean.norm()) <= largest_mean(plan, len(mean), len(companies), len(summed)):
        result.status, result.absent = "oversized_sum", absences.why
        return state, result
    old = [state[name] for name in names]
    new = unflatten(optimizer.step(flatten(old), mean), old)
    result.survivors, result.absent = summed, absences.why
    result.update_norm = float(mean.norm())
    return state | dict(zip(names, new, strict=True)), result


def _accept(
    add: Callable[[str, Item], None], company: str, item: Item, phase: str, absences: Absences
) -> None:
    """Give one company's message to the aggregation; a bad one only costs that company its place."""
    try:
        add(company, item)
    except ProtocolError as error:
        absences.note(company, phase, error.code)
