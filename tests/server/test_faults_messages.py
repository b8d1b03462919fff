"""Faults: a company, or the coordinator, sends what it should not, between real processes on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.faults import Fault
from support.hooks import StaleRequests, WrongStates, WrongVector
from support.processes import federation

from fedblocks.protocol.messages import KEYS, TRAIN
from fedblocks.settings import SimulationSettings

pytestmark = pytest.mark.slow
ROUNDS = 6


@pytest.mark.fault(
    "company sends a masked vector of a wrong shape, or an oversized one", ends="finished", in_vain=1,
    says="round 3: done, without company-1",
)  # fmt: skip
@pytest.mark.parametrize("how", ["short", "long"])
def test_a_company_that_sends_a_wrong_vector_is_left_out_of_that_round(
    small: SimulationSettings, tmp_path: Path, fault: Fault, how: str
) -> None:
    """Of four, one may be missing. Would catch a vector that spoils the sum or ends the run, and one that costs the
    others anything."""
    with federation(small, tmp_path, companies=4, rounds=ROUNDS) as made:
        agents = [made.agent(i, hook=WrongVector(how, (3,)) if i == 1 else None) for i in range(4)]
        fault.hold(made, made.serve(), rounds=ROUNDS, agents=agents)
        assert {row["round"] for row in made.run.metrics()[1:] if row["absent"]} == {3}
        assert [len(made.rows(i)) for i in (0, 2, 3)] == [ROUNDS] * 3


@pytest.mark.fault(
    "company sends, once, the vector of another round (stale), or one of NaN, infinities or random values",
    ends="lost", in_vain=1,
    says="round 3: the sum is larger than all clips together allow (oversized_sum)",
)  # fmt: skip
@pytest.mark.parametrize("how", ["stale", "nan", "infinite", "random"])
def test_a_vector_that_spoils_a_sum_moves_nothing_and_is_not_hidden(
    small: SimulationSettings, tmp_path: Path, fault: Fault, how: str
) -> None:
    """Nobody can see whose it was. Would catch a model that is moved by it, and an exit code 0."""
    with federation(small, tmp_path, rounds=ROUNDS) as made:
        agents = [made.agent(i, hook=WrongVector(how, (3,)) if i == 1 else None) for i in range(3)]
        fault.hold(made, made.serve(), rounds=ROUNDS, agents=agents)
        assert made.statuses() == ["done", "done", "oversized_sum", "done", "done", "done"]


@pytest.mark.fault(
    "company sends random values in every round", ends="stopped", in_vain=1, per="a round",
    says="round 4 failed, 3 times in a row: the sum is larger than all clips together allow (oversized_sum)",
)  # fmt: skip
def test_a_company_that_spoils_every_sum_ends_the_run_soon(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch a run that goes on to charge everybody for nothing."""
    with federation(small, tmp_path, rounds=ROUNDS) as made:
        agents = [
            made.agent(i, hook=WrongVector("random", (2, 3, 4, 5)) if i == 1 else None) for i in range(3)
        ]
        fault.hold(made, made.serve(), rounds=ROUNDS, faults=3, agents=agents)


@pytest.mark.fault(
    "coordinator sends NaN, infinities, a wrong shape or an oversized message", ends="finished", in_vain=0,
    says="round 3 failed and is begun anew: company-0: ",
)  # fmt: skip
@pytest.mark.parametrize("how", ["nan", "inf", "short", "long"])
def test_states_that_are_wrong_are_refused_by_all_before_a_charge(
    small: SimulationSettings, tmp_path: Path, fault: Fault, how: str
) -> None:
    """Would catch a training on what is not a model, for which everybody pays."""
    with federation(small, tmp_path, rounds=ROUNDS) as made:
        for home in made.homes:
            with (home / "transport/transport.toml").open("a") as file:
                file.write("largest_message_mb = 2\n")
        agents = made.agents()
        fault.hold(made, made.serve(WrongStates(how, 3)), rounds=ROUNDS, agents=agents)
        assert [len(made.rows(i)) for i in range(3)] == [ROUNDS] * 3


@pytest.mark.fault(
    "coordinator sends the messages of another round (stale)", ends="finished", in_vain=0,
    says="round 3 failed and is begun anew: company-0: ",
)  # fmt: skip
@pytest.mark.parametrize("phase", [KEYS, TRAIN])
def test_messages_of_another_round_are_refused_by_all_before_a_charge(
    small: SimulationSettings, tmp_path: Path, fault: Fault, phase: str
) -> None:
    """Would catch a session that is begun, or trained in, twice."""
    with federation(small, tmp_path, rounds=ROUNDS) as made:
        agents = made.agents()
        fault.hold(made, made.serve(StaleRequests(phase, 3)), rounds=ROUNDS, agents=agents)
        assert [len(made.rows(i)) for i in range(3)] == [ROUNDS] * 3
