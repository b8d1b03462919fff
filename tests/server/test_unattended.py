"""Runs of real processes that nobody attends: whatever is killed, cut or stopped, the run goes on or ends cleanly.

Companies are `fedblocks transport agent`, the coordinator is `fedblocks transport serve`, on loopback.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from support.faults import Fault
from support.processes import Command, Federation, federation, until, without_texts

from fedblocks.settings import SimulationSettings


def charged(made: Federation) -> list[int]:
    return [len(made.rows(i)) for i in range(len(made.homes))]


def another_round(made: Federation, serve: Command) -> None:
    seen = made.rounds()
    until(lambda: made.rounds() > seen or not serve.running, "a round after the restart")


def finished(made: Federation, rounds: int, in_vain: int) -> None:
    """All rounds were done, and no company paid for more than `in_vain` others, or for fewer than were opened."""
    assert made.statuses() == ["done"] * rounds
    assert [row["round"] for row in made.run.metrics()] == list(range(rounds + 1))
    assert all(rounds <= count <= rounds + in_vain for count in charged(made)), charged(made)
    assert all(without_texts(command.said) for command in made.started)


def test_a_killed_agent_is_back_within_a_round_and_a_stopped_coordinator_goes_on(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Three companies, of whom none may be missing. SIGKILL to an agent, Ctrl-C and SIGKILL to the coordinator.

    Would catch joined state that dies with a process, an agent that takes Ctrl-C at the coordinator for the run's
    end, rounds that are lost or charged twice, and exit codes that hide it.
    """
    with federation(small, tmp_path, rounds=16) as made:
        agents, serve = [made.agent(0), made.agent(1)], made.serve()
        service = made.start("agent", "up", made.homes[2], "--json")
        until(lambda: made.rounds() >= 2, "two rounds")
        agents[0].kill()
        agents[0] = made.agent(0)
        seen = made.rounds()
        until(lambda: made.rounds() > seen + 1, "the restarted agent takes part")
        serve.kill(signal.SIGINT)
        assert serve.end() == 130
        assert made.rounds() < 16
        assert all(agent.running for agent in (*agents, service))
        serve = made.serve()
        seen = made.rounds()
        until(lambda: made.rounds() > seen, "a round after Ctrl-C")
        serve.kill()
        serve = made.serve()
        assert serve.end(90) == 0
        assert json.loads(serve.out.read_text())["rounds_done"] == 16
        assert [agent.end() for agent in agents] == [0] * 2
        assert [json.loads(agent.out.read_text())["ended"] for agent in agents] == ["done"] * 2
        assert service.running
        until(lambda: not (made.homes[2] / "joined.json").exists(), "the service has left the run")
        service.kill(signal.SIGTERM)
        assert service.end() == 0
        finished(made, 16, in_vain=0)
        assert not any((home / "joined.json").exists() for home in made.homes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("local", marks=pytest.mark.fault(
            "agent killed 8 times, at any time, with `training.reserve`", ends="finished", in_vain=1,
            per="a kill")),
        pytest.param("secure_step", marks=pytest.mark.fault(
            "agent killed 8 times, at any time, in secure-step mode with `training.reserve`", ends="finished",
            in_vain=1, per="a kill")),
    ],
)  # fmt: skip
def test_an_agent_that_is_killed_again_and_again_costs_a_round_at_most_each_time(
    small: SimulationSettings, tmp_path: Path, fault: Fault, mode: str
) -> None:
    """Would catch a moment that is not survived, and what it costs: shares of one noise are not sent again, nor is
    a release whose sum the others have helped to open. The reserve is for both."""
    privacy = small.privacy.model_copy(update={"mode": mode})
    training = small.training.model_copy(update={"reserve": 8})
    settings = small.model_copy(update={"privacy": privacy, "training": training})
    with federation(settings, tmp_path, rounds=60) as made:
        agents, serve = made.agents(), made.serve()
        kills = 0
        until(lambda: made.rounds() >= 1, "a round")
        while serve.running and kills < 8 and made.rounds() < 50:
            time.sleep(0.35 + 0.13 * kills)
            agents[0].kill()
            agents[0] = made.agent(0)
            kills += 1
            another_round(made, serve)
        assert kills >= 4
        fault.hold(made, serve, rounds=60, faults=kills, agents=agents)


@pytest.mark.slow
@pytest.mark.fault(
    "coordinator killed 8 times, at any time, with `training.reserve`", ends="resumed", in_vain=1, per="a kill"
)  # fmt: skip
def test_a_coordinator_that_is_killed_again_and_again_costs_a_round_at_most_each_time(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch a checkpoint, a cohort or a sum that is not whole after a crash, and agents that take it for the
    end. The reserve is for what companies had opened and it had not yet written."""
    training = small.training.model_copy(update={"reserve": 8})
    with federation(small.model_copy(update={"training": training}), tmp_path, rounds=40) as made:
        agents, serve = made.agents(), made.serve()
        until(lambda: made.rounds() >= 1, "a round")
        killed: list[Command] = []
        while serve.running and len(killed) < 8 and made.rounds() < 34:
            time.sleep(0.2 + 0.11 * len(killed))
            serve.kill()
            killed.append(serve)
            serve = made.serve()
            another_round(made, serve)
        assert len(killed) >= 4
        fault.hold(made, serve, rounds=40, faults=len(killed), agents=agents, stopped=killed[-1])
