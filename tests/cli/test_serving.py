"""A coordinator's end tells the truth: a round that came to nothing is named, and the exit code says so."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from fedblocks.cli.failures import failure_of
from fedblocks.cli.serving import lines, outcome
from fedblocks.client.app import app
from fedblocks.errors import ProtocolError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.protocol.messages import TRAIN, TrainReply
from fedblocks.server.attendance import Patience
from fedblocks.server.coordinator import coordinate
from fedblocks.server.grid import GridOver, InProcessGrid
from fedblocks.settings import SimulationSettings


class Spoils(GridOver):
    """One company sends random values in round 2, masked by nothing."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        for reply in self._grid.send_and_receive(messages, timeout=timeout):
            kind, group, node = (
                reply.metadata.message_type,
                reply.metadata.group_id,
                reply.metadata.src_node_id,
            )
            if (kind, group[:8], node) == (TRAIN, "round-2-", 3):
                size = len(TrainReply.from_record(reply.content).masked)
                wrong = np.random.default_rng(0).integers(0, 256, size, np.uint8)
                reply.content = TrainReply(wrong).to_record()
            yield reply


def test_a_sum_that_one_company_spoils_is_a_lost_round_by_name_and_no_success(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch exit code 0 for a run that lacks a round, and "too few companies" where nobody was missing."""
    training = small.training.model_copy(update={"rounds": 3})
    run = prepare(small.model_copy(update={"training": training}), tmp_path / "run")
    said: list[str] = []
    grid = Spoils(InProcessGrid(app, 5, {"run-dir": str(run.path)}))
    coordinate(grid, run, [lines(said.append)], patience=Patience(linger=0.0, retry=0.05, poll=0.01))
    lost = "round 2: the sum is larger than all clips together allow (oversized_sum)"
    assert [line for line in said if line.startswith("round")][1:] == ["round 1: done", lost, "round 3: done"]
    with pytest.raises(ProtocolError, match="2 of 3 rounds were done") as stopped:
        outcome(run)
    assert str(stopped.value).endswith(lost)
    failure = failure_of(stopped.value)
    assert failure is not None
    assert failure.exit_code == 3
