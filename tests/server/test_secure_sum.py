"""A secure sum phase by phase, with the bench's companies in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict

from fedblocks.errors import ProtocolError
from fedblocks.experiments.bench.transport_apps import COMPANIES, gather, party, residues, secure_step
from fedblocks.privacy.secure_aggregation import Session
from fedblocks.protocol.messages import (
    CONFIRM,
    KEYS,
    TRAIN,
    UNMASK,
    ConfirmReply,
    KeysReply,
    TrainReply,
    UnmaskReply,
    refusal,
)
from fedblocks.server.cohort import Cohort
from fedblocks.server.grid import InProcessGrid
from fedblocks.server.secure_sum import Absences, SecureSum

PHASES = (KEYS, TRAIN, CONFIRM, UNMASK)
VALUES, THRESHOLD, LAST = 100, 4, "company-4"
STATES = {0: {"block": torch.zeros(VALUES)}}
Bend = Callable[[RecordDict], RecordDict | None]


class BendingGrid(InProcessGrid):
    """Changes the replies of some companies to one phase; loses them where `bend` returns nothing."""

    def __init__(
        self, phase: str = "", companies: tuple[str, ...] = (), bend: Bend = lambda record: record
    ) -> None:
        super().__init__(party, COMPANIES, {})
        self._phase, self._companies, self._bend = phase, companies, bend
        self.asked: list[tuple[str, str, str]] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        sent, replies = list(messages), []
        for message in sent:
            about = message.metadata
            self.asked.append((about.message_type, about.group_id, f"company-{about.dst_node_id - 1}"))
        for reply in super().send_and_receive(sent, timeout=timeout):
            company = f"company-{reply.metadata.src_node_id - 1}"
            bent: RecordDict | None = reply.content
            if reply.metadata.message_type == self._phase and company in self._companies:
                bent = self._bend(reply.content)
            if bent is not None:
                reply.content = bent
                replies.append(reply)
        return replies


def start(grid: BendingGrid) -> tuple[SecureSum, Absences, Cohort]:
    cohort, absences = gather(grid, COMPANIES, wait=1.0, timeout=10.0), Absences()
    session = Session(
        run="bench", round=1, label="block-0", model_digest=bytes(32), settings_digest=bytes(32),
        cohort=cohort.companies, threshold=THRESHOLD, length=VALUES, bits=22,
    )  # fmt: skip
    grid.asked.clear()
    return SecureSum(session, cohort, "group", absences), absences, cohort


def all_phases(secure_sum: SecureSum) -> tuple[Any, tuple[str, ...]]:
    confirmations = secure_sum.confirm(secure_sum.train(0, STATES, secure_sum.keys()))
    return secure_sum.unmask(confirmations)


def sum_of(names: Iterable[str]) -> Any:
    return np.sum([residues(VALUES, name).astype(np.int64) for name in names], axis=0) % 2**22


def test_each_phase_asks_every_company_once_and_the_last_opens_the_sum() -> None:
    grid = BendingGrid()
    secure_sum, absences, cohort = start(grid)
    total, names = all_phases(secure_sum)
    assert names == cohort.companies
    np.testing.assert_array_equal(total, sum_of(names))
    assert not absences.why
    assert grid.asked == [(phase, "group", name) for phase in PHASES for name in cohort.companies]


def wrong_session(record: RecordDict, phase: str) -> RecordDict:
    """A well-formed message that only the aggregation can refuse."""
    other = {"session": bytes(32)}
    if phase == KEYS:
        return KeysReply(replace(KeysReply.from_record(record).advert, **other)).to_record()  # type: ignore[arg-type]
    if phase == CONFIRM:
        bent = replace(ConfirmReply.from_record(record).confirmation, **other)
        return ConfirmReply(bent).to_record()
    return UnmaskReply(replace(UnmaskReply.from_record(record).shares, **other)).to_record()  # type: ignore[arg-type]


FAULTS: dict[str, Callable[[RecordDict, str], RecordDict | None]] = {
    "no_reply": lambda record, phase: None,
    "malformed": lambda record, phase: RecordDict(),
    "replay": lambda record, phase: refusal(ProtocolError("replay", "refused")),
    "wrong_session": wrong_session,
    "bad_vector": lambda record, phase: TrainReply(np.zeros(3, np.uint8)).to_record(),
}
CASES = [
    (phase, code)
    for phase in PHASES
    for code in FAULTS
    if code not in {"wrong_session", "bad_vector"} or (code == "bad_vector") == (phase == TRAIN)
]


@pytest.mark.parametrize(("phase", "code"), CASES)
def test_a_bad_message_costs_only_its_company_its_place(phase: str, code: str) -> None:
    """Would catch a message that ends the sum for all, one that is counted, or an absence without its reason."""
    grid = BendingGrid(phase, (LAST,), lambda record: FAULTS[code](record, phase))
    secure_sum, absences, cohort = start(grid)
    total, names = all_phases(secure_sum)
    assert absences.why == {LAST: (phase, code)}
    assert names == (cohort.companies[:-1] if phase in {KEYS, TRAIN} else cohort.companies)
    np.testing.assert_array_equal(total, sum_of(names))
    assert [p for p, _, name in grid.asked if name == LAST] == list(PHASES[: PHASES.index(phase) + 1])


@pytest.mark.parametrize("phase", PHASES)
def test_too_few_companies_end_the_sum_in_the_phase_that_lost_them(phase: str) -> None:
    grid = BendingGrid(phase, ("company-3", LAST), lambda record: None)
    secure_sum, absences, _ = start(grid)
    with pytest.raises(ProtocolError) as error:
        all_phases(secure_sum)
    assert error.value.code == "too_few"
    assert absences.why == dict.fromkeys(("company-3", LAST), (phase, "no_reply"))
    assert {p for p, _, _ in grid.asked} == set(PHASES[: PHASES.index(phase) + 1])


def test_a_phase_is_taken_once() -> None:
    secure_sum, _, _ = start(BendingGrid())
    secure_sum.keys()
    with pytest.raises(ProtocolError) as error:
        secure_sum.keys()
    assert error.value.code == "wrong_phase"


def test_the_bench_times_every_phase_and_refuses_a_sum_that_lacks_a_company() -> None:
    cohort = gather(BendingGrid(), COMPANIES, wait=1.0, timeout=10.0)
    seconds = secure_step(cohort, 1, VALUES)
    assert list(seconds) == ["keys", "upload", "confirm", "unmask"]
    assert all(value > 0 for value in seconds.values())
    cohort = gather(BendingGrid(TRAIN, (LAST,), lambda record: None), COMPANIES, wait=1.0, timeout=10.0)
    with pytest.raises(RuntimeError, match=r"not the companies' sum.*no_reply"):
        secure_step(cohort, 1, VALUES)
