"""Runs of real processes that nobody attends: whatever is killed, cut or stopped, the run goes on or ends cleanly.

Companies are `fedblocks transport agent`, the coordinator is `fedblocks transport serve`, on loopback.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from support.processes import Command, Federation, Wire, federation, until, without_texts

from fedblocks.settings import SimulationSettings


def charged(made: Federation) -> list[int]:
    return [len(made.rows(i)) for i in range(len(made.homes))]


def another_round(made: Federation, serve: Command) -> None:
    seen = made.rounds()
    until(lambda: made.rounds() > seen or not serve.running, "a round after the restart", 60)


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
    with federation(small, tmp_path, rounds=24) as made:
        agents, serve = [made.agent(0), made.agent(1)], made.serve()
        service = made.start("agent", "up", made.homes[2], "--json")
        until(lambda: made.rounds() >= 2, "two rounds")
        agents[0].kill()
        agents[0] = made.agent(0)
        seen = made.rounds()
        until(lambda: made.rounds() > seen + 1, "the restarted agent takes part")
        serve.kill(signal.SIGINT)
        assert serve.end() == 130
        assert made.rounds() < 24
        assert all(agent.running for agent in (*agents, service))
        serve = made.serve()
        seen = made.rounds()
        until(lambda: made.rounds() > seen, "a round after Ctrl-C")
        serve.kill()
        serve = made.serve()
        assert serve.end(90) == 0
        assert json.loads(serve.out.read_text())["rounds_done"] == 24
        assert [agent.end() for agent in agents] == [0] * 2
        assert [json.loads(agent.out.read_text())["ended"] for agent in agents] == ["done"] * 2
        assert service.running
        until(lambda: not (made.homes[2] / "joined.json").exists(), "the service has left the run")
        service.kill(signal.SIGTERM)
        assert service.end() == 0
        finished(made, 24, in_vain=0)
        assert not any((home / "joined.json").exists() for home in made.homes)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [5.0, 30.0])
def test_a_cut_wire_costs_no_round(small: SimulationSettings, tmp_path: Path, seconds: float) -> None:
    """Would catch the fault seen in trials: 5 seconds lost 93 of 200 rounds, exit code 0."""
    wire = Wire(0)
    with federation(small, tmp_path, rounds=60, through=wire.port) as made:
        wire._to = made.port
        agents, serve = made.agents(), made.serve()
        until(lambda: made.rounds() >= 5, "five rounds")
        wire.cut()
        time.sleep(seconds)
        assert serve.running
        seen = made.rounds()
        wire.mend()
        until(lambda: made.rounds() > seen + 2, "rounds after the cut")
        assert serve.end(120) == 0
        assert [agent.end() for agent in agents] == [0] * 3
        finished(made, 60, in_vain=1)
        assert "waiting for company-0, company-1, company-2" in serve.said
    wire.close()


@pytest.mark.slow
def test_a_company_that_is_gone_for_good_does_not_block_a_resumed_run(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Four companies, of which one may be missing. Would catch a resume that waits for all, without a name."""
    with federation(small, tmp_path, companies=4, rounds=30) as made:
        agents, serve = made.agents(), made.serve()
        until(lambda: made.rounds() >= 2, "two rounds")
        agents[2].kill()
        shutil.rmtree(made.homes[2] / "transport")
        serve.kill(signal.SIGTERM)
        assert serve.end() == 130
        serve = made.serve()
        assert serve.end(120) == 0
        assert "waiting for company-2" in serve.said
        assert made.run.metrics()[-1]["absent"].keys() == {"company-2"}
        assert made.statuses() == ["done"] * 30
        assert [agent.end() for i, agent in enumerate(agents) if i != 2] == [0] * 3


@pytest.mark.slow
def test_a_frozen_company_is_missed_for_a_while_and_takes_part_again(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """SIGSTOP. Would catch a run that hangs without a word."""
    with federation(small, tmp_path, companies=4, rounds=400) as made:
        agents, serve = made.agents(), made.serve()
        until(lambda: made.rounds() >= 3, "three rounds")
        agents[1].kill(signal.SIGSTOP)
        seen = made.rounds()
        until(lambda: made.rounds() > seen + 3, "rounds without the frozen company", 90)
        assert "waiting for company-1" in serve.said or "without company-1" in serve.said
        agents[1].kill(signal.SIGCONT)
        until(
            lambda: "company-1" in made.run.metrics()[-1].get("survivors", ()) or not serve.running,
            "company-1 is back",
            60,
        )
        assert serve.running
        serve.kill(signal.SIGTERM)
        assert serve.end() == 130


@pytest.mark.slow
def test_the_data_of_one_company_cannot_burn_the_others_budget(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Replaced in mid-run. Would catch the fault seen in trials: 52 rounds charged in vain, exit code 0."""
    with federation(small, tmp_path, rounds=60) as made:
        agents, serve = made.agents(), made.serve()
        until(lambda: made.rounds() >= 3, "three rounds")
        shutil.copy(made.homes[0] / "data.npz", made.homes[1] / "data.npz")
        assert serve.end(60) == 3
        assert "company-1: its data are not those with which the run began (data_changed)" in serve.said
        done = made.rounds()
        assert max(charged(made)) <= done + 1
        assert all(agent.running for agent in agents)


@pytest.mark.slow
def test_an_agent_without_its_data_does_not_start_and_the_coordinator_says_who_is_missing(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch an agent that takes part without data and ends with "done"."""
    with federation(small, tmp_path, rounds=3) as made:
        (made.homes[1] / "data.npz").unlink()
        (made.plane / "transport.toml").write_text(f'listen = "127.0.0.1:{made.port}"\ngather = 5\n')
        serve, agents = made.serve(), made.agents()
        assert agents[1].end() == 3
        assert "no_data" in agents[1].said
        assert "data.npz is missing" in agents[1].said
        assert agents[1].said.count("\n") == 1
        assert serve.end() == 2
        assert "company-1 missing after 5 s" in serve.said
        assert charged(made) == [0] * 3


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["local", "secure_step"])
def test_an_agent_that_is_killed_again_and_again_costs_a_round_at_most_each_time(
    small: SimulationSettings, tmp_path: Path, mode: str
) -> None:
    """SIGKILL at whatever phase it is in. Would catch a phase that is not survived, and what is charged for it."""
    shared = small.model_copy(update={"privacy": small.privacy.model_copy(update={"mode": mode})})
    with federation(shared, tmp_path, rounds=60) as made:
        agents, serve = made.agents(), made.serve()
        kills = 0
        until(lambda: made.rounds() >= 1, "a round")
        while serve.running and kills < 8 and made.rounds() < 50:
            time.sleep(0.35 + 0.13 * kills)
            agents[0].kill()
            agents[0] = made.agent(0)
            kills += 1
            another_round(made, serve)
        code = serve.end(120)
        counts = charged(made)
        if mode == "local":
            assert code == 0
            finished(made, 60, in_vain=kills)
        else:  # shares of one noise cannot be sent again: what was lost is missing at the end
            assert code in (0, 3)
            assert made.rounds() >= 60 - kills
        assert max(counts) <= made.rounds() + kills


@pytest.mark.slow
def test_a_coordinator_that_is_killed_again_and_again_costs_a_round_at_most_each_time(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """SIGKILL at whatever phase it is in, with a reserve for what companies had opened and it had not yet written.

    Would catch a checkpoint, a cohort or a sum that is not whole after a crash, and agents that take it for the end.
    """
    training = small.training.model_copy(update={"reserve": 8})
    with federation(small.model_copy(update={"training": training}), tmp_path, rounds=40) as made:
        agents, serve = made.agents(), made.serve()
        until(lambda: made.rounds() >= 1, "a round")
        kills = 0
        while serve.running and kills < 8 and made.rounds() < 34:
            time.sleep(0.2 + 0.11 * kills)
            serve.kill()
            serve = made.serve()
            kills += 1
            another_round(made, serve)
        assert serve.end(120) == 0
        assert kills >= 4
        finished(made, 40, in_vain=kills)
        assert [agent.end() for agent in agents] == [0] * 3


@pytest.mark.slow
def test_a_second_agent_of_a_home_is_refused_and_the_first_goes_on(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch two agents that answer in turns, each with half of a session."""
    with federation(small, tmp_path, rounds=20) as made:
        agents, serve = made.agents(), made.serve()
        until(lambda: made.rounds() >= 1, "a round")
        second = made.agent(0)
        assert second.end() == 3
        assert "busy" in second.said
        assert serve.end() == 0
        assert [agent.end() for agent in agents] == [0] * 3
        finished(made, 20, in_vain=0)
