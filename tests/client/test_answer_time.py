"""An answer's time with `answer_seconds` in the policy: the same for all examples, whoever measures it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from support.coordinating import Coordinator

from fedblocks.client import app as client_app
from fedblocks.client.answer_time import Clock, timed
from fedblocks.errors import BudgetExceeded
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.composition import Terms
from fedblocks.privacy.ledger import Ledger
from fedblocks.protocol.messages import (
    CONFIRM,
    JOIN,
    KEYS,
    TRAIN,
    JoinRequest,
    KeysRequest,
    TrainReply,
    refusal,
    refused,
)
from fedblocks.server.stream import StreamGrid
from fedblocks.settings import SimulationSettings

DONE = RecordDict({"message": ConfigRecord({"masked": b"x"})})


class Simulated:
    """A clock that a test moves; sleeping may end early, as a system's may."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.clock = Clock(lambda: self.time, self._sleep)

    def _sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.time += max(seconds / 2, 1e-9)

    def work(self, seconds: float, record: RecordDict = DONE) -> RecordDict:
        self.time += seconds
        return record


@given(took=st.floats(0, 50), seconds=st.floats(0.01, 20))
def test_only_the_number_of_whole_durations_can_be_seen(took: float, seconds: float) -> None:
    simulated = Simulated()
    record, durations = timed(lambda: simulated.work(took), seconds, simulated.clock)
    left = simulated.time - 1000.0
    assert left == pytest.approx(durations * seconds, abs=1e-6)
    assert durations == max(1, math.ceil(took / seconds)) or took / seconds == pytest.approx(
        round(took / seconds)
    )
    assert refused(record) == ("late" if durations > 1 else None)


def test_a_refusal_leaves_at_the_same_time_as_an_answer() -> None:
    simulated = Simulated()
    refusing = refusal(BudgetExceeded("spent"))
    record, _ = timed(lambda: simulated.work(0.1, refusing), 2.0, simulated.clock)
    assert refused(record) == "privacy"
    assert simulated.time == pytest.approx(1002.0)


def test_without_a_duration_an_answer_leaves_at_once() -> None:
    simulated = Simulated()
    assert timed(lambda: simulated.work(0.1), None, simulated.clock) == (DONE, 1)
    assert simulated.time == pytest.approx(1000.1)


def policies(coordinator: Coordinator, line: str) -> None:
    for home in coordinator.run.companies.iterdir():
        policy = home / "policy.toml"
        policy.write_text(f"{line}\n{policy.read_text()}")


def slow_if(
    monkeypatch: pytest.MonkeyPatch, seconds: float, planted: set[str], error: Exception | None = None
) -> None:
    """Training that takes `seconds` longer with the examples of some companies, and may then fail."""
    train = client_app.train_block
    told = threading.local()
    of = client_app.Company.data

    def data(company: Any) -> Any:
        told.name = company.name
        return of(company)

    def slowly(*arguments: Any, **named: Any) -> Any:
        result = train(*arguments, **named)
        if told.name in planted:
            time.sleep(seconds)
            if error is not None:
                raise error
        return result

    monkeypatch.setattr(client_app.Company, "data", data)
    monkeypatch.setattr(client_app, "train_block", slowly)


def answers(coordinator: Coordinator, line: str = "") -> dict[int, tuple[float, str | None, float]]:
    """Of nodes 1 and 2: seconds to a training's answer, its refusal, and its age in the times that Flower stamps.

    `line` is of the policies from then on.
    """
    found = {}
    requests = coordinator.train_requests(coordinator.session())
    policies(coordinator, line)
    for node in (1, 2):
        message = coordinator.grid.create_message(requests[node].to_record(), TRAIN, node, "1")
        started = time.monotonic()
        (reply,) = coordinator.grid.send_and_receive([message])
        stamped = reply.metadata.created_at - message.metadata.created_at
        found[node] = time.monotonic() - started, refused(reply.content), stamped
    return found


@pytest.mark.parametrize("error", [None, ValueError("row 17 of the salaries")])
def test_the_examples_cannot_be_told_by_the_time_of_an_answer(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """One company's examples make training slow, or fail after the charge: the attack, and its control."""
    slow_if(monkeypatch, 0.4, {"company-1"}, error)
    open_, fixed = (Coordinator(prepare(small, tmp_path / name)) for name in ("open", "fixed"))
    plain = answers(open_)
    assert plain[2][0] > 0.3 + plain[1][0]
    for node, (seconds, code, stamped) in answers(fixed, "answer_seconds = 1.2").items():
        assert 1.2 <= seconds < 1.35
        assert 1.2 <= stamped < 1.35
        assert code == ("internal" if error is not None and node == 2 else None)


def test_work_that_takes_too_long_is_charged_and_stays_at_home(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_if(monkeypatch, 1.2, {"company-1"})
    coordinator = Coordinator(prepare(small, tmp_path / "run"))
    found = answers(coordinator, "answer_seconds = 1.0")
    assert found[2][1] == "late"
    assert 2.0 <= found[2][0] < 2.15
    assert coordinator.charges(1) == 1
    assert "took 2 times" in (coordinator.run.companies / "company-1" / "company.log").read_text()
    assert found[1][1] is None


@pytest.mark.parametrize("noise", [None, 0.3], ids=["joined", "refused"])
def test_what_was_spent_cannot_be_told_by_the_time_of_a_join(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: float | None
) -> None:
    """Would catch joins that leave when the account is done: to find how much of the budget is left takes time."""
    check = Ledger.check_plans

    def slowly(ledger: Ledger, parts: Sequence[tuple[str, Terms]]) -> float:
        if ledger._company == "company-1":
            time.sleep(0.4)
        return check(ledger, parts)

    monkeypatch.setattr(Ledger, "check_plans", slowly)
    coordinator = Coordinator(prepare(small, tmp_path / "run"))
    plan = coordinator.plan.model_copy(update={} if noise is None else {"noise_multiplier": noise})
    record = JoinRequest(plan, coordinator.model.shared).to_record()

    def seconds(node: int) -> float:
        started = time.monotonic()
        assert refused(coordinator.ask(node, JOIN, record)) == (None if noise is None else "privacy")
        return time.monotonic() - started

    seconds(1)  # what is done once a process
    assert seconds(2) > 0.3 + seconds(1)
    policies(coordinator, "answer_seconds = 1.2")
    assert all(1.2 <= seconds(node) < 1.35 for node in (1, 2))


def test_readiness_for_a_round_cannot_be_told_from_its_refusal_by_time(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """It reads data and ledger. Would catch an answer to the keys that leaves when they have been read."""
    coordinator = Coordinator(prepare(small, tmp_path / "run"))
    channels = coordinator.channels()
    record = KeysRequest(coordinator.session(), channels).to_record()
    (coordinator.run.companies / "company-1" / "data.npz").unlink()
    policies(coordinator, "answer_seconds = 1.2")
    for node, code in ((1, None), (2, "no_data")):
        started = time.monotonic()
        assert refused(coordinator.ask(node, KEYS, record)) == code
        assert 1.2 <= time.monotonic() - started < 1.35


def test_what_reads_neither_examples_nor_ledger_does_not_wait(
    small: SimulationSettings, tmp_path: Path
) -> None:
    coordinator = Coordinator(prepare(small, tmp_path / "run"))
    policies(coordinator, "answer_seconds = 60.0")
    started = time.monotonic()
    assert refused(coordinator.ask(1, CONFIRM, RecordDict())) is not None
    assert time.monotonic() - started < 5.0


@pytest.mark.slow
def test_a_run_over_the_data_plane_with_answers_at_a_fixed_time(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run, as its coordinator can time it."""
    training = small.training.model_copy(update={"rounds": 1})
    # All five at once, as on machines of their own.
    run = prepare(small.model_copy(update={"training": training, "workers": 5}), tmp_path / "run")
    for home in run.companies.iterdir():
        policy = home / "policy.toml"
        policy.write_text(f"answer_seconds = 2.0\n{policy.read_text()}")
    seconds: list[float] = []
    ask = StreamGrid.send_and_receive

    def measured(grid: StreamGrid, messages: Iterable[Message], **named: Any) -> Iterable[Message]:
        asked, started = list(messages), time.monotonic()
        for reply in ask(grid, asked, **named):
            if reply.metadata.message_type == TRAIN:
                assert isinstance(TrainReply.from_record(reply.content).masked, np.ndarray)
                seconds.append(time.monotonic() - started)
            yield reply

    monkeypatch.setattr(StreamGrid, "send_and_receive", measured)
    simulate(run, transport="grpc")
    assert [row["status"] for row in run.metrics()[1:]] == ["done"]
    assert len(seconds) == 5
    assert 2.0 <= min(seconds) <= max(seconds) < 2.4
