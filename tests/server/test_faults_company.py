"""Faults: a company comes late, goes, or changes what it has or allows while a run of real processes goes on."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.faults import Fault
from support.processes import federation, until

from fedblocks.settings import SimulationSettings

pytestmark = pytest.mark.slow
ROUNDS = 16


@pytest.mark.fault(
    "company joining late", ends="finished", in_vain=0, says="waiting for company-2"
)  # fmt: skip
def test_a_company_that_comes_late_is_waited_for(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch a cohort that is fixed without it, and a coordinator that gives up."""
    with federation(small, tmp_path, rounds=3) as made:
        serve, agents = made.serve(), [made.agent(0), made.agent(1)]
        until(lambda: "waiting for company-2" in serve.said, "the others are there")
        assert made.rounds() == 0
        assert [len(made.rows(i)) for i in range(2)] == [0, 0]
        agents.append(made.agent(2))
        fault.hold(made, serve, rounds=3, agents=agents)


@pytest.mark.fault(
    "company gone for good in mid-run, one may be missing", ends="without", in_vain=1,
    says="without company-2: did not answer (no_reply)",
)  # fmt: skip
def test_a_company_that_is_gone_for_good_is_missed_and_the_run_goes_on(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch a run that waits for it in every round, or for ever."""
    with federation(small, tmp_path, companies=4, rounds=ROUNDS) as made:
        agents, serve = made.agents(), made.serve()
        until(lambda: made.rounds() >= 3, "three rounds")
        agents.pop(2).kill()
        shutil.rmtree(made.homes[2] / "transport")
        fault.hold(made, serve, rounds=ROUNDS, agents=agents)
        assert made.run.metrics()[-1]["absent"].keys() == {"company-2"}


@pytest.mark.fault(
    "company gone for good, the run resumed without it", ends="interrupted", in_vain=1
)  # fmt: skip
def test_a_company_that_is_gone_for_good_does_not_block_a_resumed_run(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Four companies, of which one may be missing. Would catch a resume that waits for all, without a name."""
    with federation(small, tmp_path, companies=4, rounds=ROUNDS) as made:
        agents, stopped = made.agents(), made.serve()
        until(lambda: made.rounds() >= 2, "two rounds")
        agents.pop(2).kill()
        shutil.rmtree(made.homes[2] / "transport")
        stopped.kill(signal.SIGTERM)
        stopped.end()
        serve = made.serve()
        fault.hold(made, serve, rounds=ROUNDS, agents=agents, stopped=stopped)
        assert "waiting for company-2" in serve.said
        assert made.run.metrics()[-1]["absent"].keys() == {"company-2"}


def other_data(home: Path) -> None:
    shutil.copy(home.parent / "company-0" / "data.npz", home / "data.npz")


def no_data(home: Path) -> None:
    (home / "data.npz").unlink()


def rule(key: str, value: object) -> Callable[[Path], None]:
    """A rule of the company's policy, from now on."""

    def rewrite(home: Path) -> None:
        policy = home / "policy.toml"
        kept = [line for line in policy.read_text().splitlines() if not line.startswith(f"{key} ")]
        policy.write_text("\n".join([f"{key} = {value}", *kept]))

    return rewrite


def mended(small: SimulationSettings, folder: Path, fault: Fault, harm: Callable[[Path], Any]) -> None:
    """It comes over one of three companies, of whom none may be missing, after three rounds; then it is undone."""
    with federation(small, folder, rounds=ROUNDS) as made:
        agents, stopped = made.agents(), made.serve()
        until(lambda: made.rounds() >= 3, "three rounds")
        home = made.homes[1]
        kept = {name: (home / name).read_bytes() for name in ("data.npz", "policy.toml")}
        harm(home)
        assert stopped.end() == 3, stopped.said
        paid = [len(made.rows(i)) for i in range(3) if i != 1]
        assert max(paid) <= made.rounds() + 1
        assert all(agent.running for agent in agents)
        for name, content in kept.items():
            (home / name).write_bytes(content)
            (home / name).chmod(0o600)
        fault.hold(made, made.serve(), rounds=ROUNDS, agents=agents, stopped=stopped)


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(other_data, id="replaced", marks=pytest.mark.fault(
            "data replaced in mid-run", ends="mended", in_vain=1,
            says="company-1: its data are not those with which the run began (data_changed)")),
        pytest.param(no_data, id="missing", marks=pytest.mark.fault(
            "data missing in mid-run", ends="mended", in_vain=1,
            says="company-1: its data are missing or do not fit (no_data)")),
    ],
)  # fmt: skip
def test_the_data_of_one_company_cannot_burn_the_others_budget(
    small: SimulationSettings, tmp_path: Path, fault: Fault, harm: Callable[[Path], None]
) -> None:
    """Would catch the fault seen in trials: 52 rounds charged in vain, exit code 0."""
    mended(small, tmp_path, fault, harm)


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(rule("minimum_noise_multiplier", 1000.0), id="noise", marks=pytest.mark.fault(
            "policy tightened in mid-run", ends="mended", in_vain=1,
            says="company-1: its policy or its ledger does not allow it (privacy)")),
        pytest.param(rule("epsilon_ceiling", 0.01), id="ceiling", marks=pytest.mark.fault(
            "ceiling lowered below what is spent, in mid-run", ends="mended", in_vain=1,
            says="company-1: its policy or its ledger does not allow it (privacy)")),
        pytest.param(rule("epsilon_ceiling_run", 0.01), id="run", marks=pytest.mark.fault(
            "ceiling of a run reached in mid-run", ends="mended", in_vain=1,
            says="company-1: its policy or its ledger does not allow it (privacy)")),
        pytest.param(rule("most_steps", 1), id="steps", marks=pytest.mark.fault(
            "local steps used up in mid-run", ends="mended", in_vain=1,
            says="company-1: its policy or its ledger does not allow it (privacy)")),
    ],
)  # fmt: skip
def test_a_tightened_policy_ends_the_run_before_more_is_charged(
    small: SimulationSettings, tmp_path: Path, fault: Fault, harm: Callable[[Path], None]
) -> None:
    """Would catch a policy that is read once, and others who pay on for rounds that cannot end."""
    mended(small, tmp_path, fault, harm)


@pytest.mark.fault(
    "a company's rounds of a day used up in mid-run", ends="finished", in_vain=1,
    says="company-1: one of its policy's limits on numbers is reached (too_many)",
)  # fmt: skip
def test_a_limit_of_a_day_is_waited_out(small: SimulationSettings, tmp_path: Path, fault: Fault) -> None:
    """Would catch a run that stops for what passes by itself, and one that charges others meanwhile."""
    with federation(small, tmp_path, rounds=6) as made:
        rule("most_rounds_a_day", 3)(made.homes[1])
        agents, serve = made.agents(), made.serve()
        until(lambda: "too_many" in serve.said, "the day's rounds are used up")
        assert made.rounds() == 3
        assert [len(made.rows(i)) for i in range(3)] == [3] * 3
        rule("most_rounds_a_day", 10)(made.homes[1])  # as a new day would
        fault.hold(made, serve, rounds=6, agents=agents)


@pytest.mark.fault(
    "data missing at the start", ends="refused", in_vain=0,
    says="no_data: ",
)  # fmt: skip
def test_an_agent_without_its_data_does_not_start_and_the_coordinator_says_who_is_missing(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch an agent that takes part without data and ends with "done"."""
    with federation(small, tmp_path, rounds=3) as made:
        (made.homes[1] / "data.npz").unlink()
        (made.plane / "transport.toml").write_text(f'listen = "127.0.0.1:{made.port}"\ngather = 5\n')
        serve, agents = made.serve(), made.agents()
        assert serve.end() == 2
        assert "company-1 missing after 5 s" in serve.said
        assert "data.npz is missing: read your data with" in agents[1].said
        fault.refuse(made, agents[1])
        assert [len(made.rows(i)) for i in range(3)] == [0] * 3


@pytest.mark.fault(
    "two agents of one home", ends="refused", in_vain=0,
    says="busy: an agent of this home is running already",
)  # fmt: skip
def test_a_second_agent_of_a_home_is_refused_and_the_first_goes_on(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch two agents that answer in turns, each with half of a session."""
    with federation(small, tmp_path, rounds=8) as made:
        agents, serve = made.agents(), made.serve()
        until(lambda: made.rounds() >= 1, "a round")
        seconds = [made.agent(0), made.start("agent", "up", made.homes[0], "--json")]
        assert serve.end() == 0
        assert [agent.end() for agent in agents] == [0] * 3
        assert made.statuses() == ["done"] * 8
        fault.refuse(made, *seconds)
