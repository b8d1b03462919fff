"""Faults: Ctrl-C and SIGTERM at either side, and a port that is taken, of real processes on loopback."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest
from support.faults import Fault
from support.hooks import Paced
from support.processes import federation, until

from fedblocks.settings import SimulationSettings

pytestmark = pytest.mark.slow
ROUNDS = 10


@pytest.mark.fault(
    "Ctrl-C or SIGTERM at the coordinator", ends="interrupted", in_vain=1,
    says="interrupted; nothing is lost, agents wait; go on: fedblocks coordinator run",
)  # fmt: skip
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_coordinator_leaves_its_agents_waiting(
    small: SimulationSettings, tmp_path: Path, fault: Fault, number: signal.Signals
) -> None:
    """Within a training. Would catch agents that take it for the run's end, and a training that is paid for twice."""
    with federation(small, tmp_path, rounds=ROUNDS) as made:
        agents, stopped = [made.agent(i, hook=Paced(0.5)) for i in range(3)], made.serve()
        until(lambda: made.rounds() >= 2, "two rounds")
        stopped.kill(number)
        until(lambda: not stopped.running, "it ends")
        assert all(agent.running for agent in agents)
        fault.hold(made, made.serve(), rounds=ROUNDS, agents=agents, stopped=stopped)


@pytest.mark.fault("Ctrl-C or SIGTERM at an agent, and its restart", ends="finished", in_vain=1)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("service", [False, True], ids=["transport agent", "agent up"])
def test_an_interrupted_agent_ends_by_its_own_word_and_takes_part_again(
    small: SimulationSettings, tmp_path: Path, fault: Fault, number: signal.Signals, service: bool
) -> None:
    """Three companies, of whom none may be missing. Would catch an agent that hangs, exits as if the run were done,
    or forgets what it had joined."""
    with federation(small, tmp_path, rounds=ROUNDS) as made:
        agents, serve = [made.agent(0), made.agent(1)], made.serve()
        words = ("agent", "up") if service else ("transport", "agent")
        ended = made.start(*words, made.homes[2], "--json", hook=Paced(0.5))
        until(lambda: made.rounds() >= 2, "two rounds")
        ended.kill(number)
        code = ended.end()
        if service:
            assert (code, json.loads(ended.out.read_text())["ended"]) == (0, "stopped")
        else:
            assert code == (130 if number == signal.SIGINT else -signal.SIGTERM)
        assert (made.homes[2] / "joined.json").exists()
        agents.append(made.agent(2))
        fault.hold(made, serve, rounds=ROUNDS, agents=agents)


@pytest.mark.fault(
    "port in use at the coordinator", ends="refused", in_vain=0, says="cannot listen on 127.0.0.1:"
)
def test_a_coordinator_whose_port_is_taken_does_not_start(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch a coordinator that nobody can reach, and companies that are lost to whoever listens there."""
    with federation(small, tmp_path, rounds=3) as made:
        with socket.create_server(("127.0.0.1", made.port)):
            agents, refused = made.agents(), made.serve()
            assert refused.end() == 2
        serve = made.serve()
        assert serve.end() == 0
        assert [agent.end() for agent in agents] == [0] * 3
        assert made.statuses() == ["done"] * 3
        fault.refuse(made, refused)


@pytest.mark.fault(
    "two coordinators of one run", ends="refused", in_vain=0, says="is at work here; wait until it is done, or end it"
)  # fmt: skip
def test_a_second_coordinator_of_a_run_is_refused_and_the_first_goes_on(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch rounds that are done, and paid, by both."""
    with federation(small, tmp_path, rounds=ROUNDS) as made:
        agents, serve = [made.agent(i, hook=Paced(0.5)) for i in range(3)], made.serve()
        until(lambda: made.rounds() >= 1, "a round")
        second = made.serve()
        assert second.end() == 2
        assert serve.end() == 0
        assert [agent.end() for agent in agents] == [0] * 3
        assert made.statuses() == ["done"] * ROUNDS
        fault.refuse(made, second)
