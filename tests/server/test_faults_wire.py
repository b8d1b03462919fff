"""Faults: the wire between companies and coordinator is cut, of real processes on loopback."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from support.faults import Fault
from support.hooks import Paced
from support.processes import Wire, federation, until

from fedblocks.settings import SimulationSettings

pytestmark = pytest.mark.slow


def cut(
    small: SimulationSettings, folder: Path, fault: Fault, seconds: float, *, silently: bool, rounds: int
) -> None:
    """All three companies, of whom none may be missing, lose the coordinator within a round."""
    wire = Wire(0)
    with federation(small, folder, rounds=rounds, through=wire.port) as made:
        wire._to = made.port
        agents, serve = made.agents(), made.serve()
        until(lambda: made.rounds() >= 3, "three rounds")
        wire.cut(silently=silently)
        time.sleep(seconds)
        assert serve.running
        wire.mend()
        fault.hold(made, serve, rounds=rounds, agents=agents)
    wire.close()


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(
            5.0, marks=pytest.mark.fault("wire cut for 5 s, connections broken", ends="finished", in_vain=1,
                                         says="waiting for company-0, company-1, company-2")
        ),
        pytest.param(
            120.0, marks=pytest.mark.fault("wire cut for 2 minutes, connections broken", ends="finished", in_vain=1,
                                           says="waiting for company-0, company-1, company-2")
        ),
    ],
)  # fmt: skip
def test_a_cut_wire_costs_no_round(
    small: SimulationSettings, tmp_path: Path, fault: Fault, seconds: float
) -> None:
    """Would catch the fault seen in trials: 5 seconds lost 93 of 200 rounds, exit code 0."""
    cut(small, tmp_path, fault, seconds, silently=False, rounds=24)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(
            5.0, marks=pytest.mark.fault("wire silent for 5 s (packets dropped)", ends="finished", in_vain=0)
        ),
        pytest.param(
            120.0, marks=pytest.mark.fault("wire silent for 2 minutes (packets dropped)", ends="finished", in_vain=1,
                                           says="waiting for company-0, company-1, company-2")
        ),
    ],
)  # fmt: skip
def test_a_wire_that_lets_nothing_through_costs_no_round(
    small: SimulationSettings, tmp_path: Path, fault: Fault, seconds: float
) -> None:
    """Would catch a side that waits for ever on a connection that nobody has closed."""
    cut(small, tmp_path, fault, seconds, silently=True, rounds=24)


@pytest.mark.fault(
    "company frozen (SIGSTOP)", ends="finished", in_vain=1, says="without company-1: did not answer (no_reply)"
)  # fmt: skip
def test_a_frozen_company_is_missed_for_a_while_and_takes_part_again(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Of four, one may be missing. Would catch a run that hangs without a word, and a company that stays out."""
    with federation(small, tmp_path, companies=4, rounds=100) as made:
        agents, serve = [made.agent(i, hook=Paced(0.3)) for i in range(4)], made.serve()
        until(lambda: made.rounds() >= 3, "three rounds")
        agents[1].kill(signal.SIGSTOP)
        seen = made.rounds()
        until(lambda: made.rounds() > seen + 3, "rounds without the frozen company")
        agents[1].kill(signal.SIGCONT)
        until(
            lambda: "company-1" in made.run.metrics()[-1].get("survivors", ()) or not serve.running,
            "company-1 is back",
        )
        assert serve.running
        fault.hold(made, serve, rounds=100, agents=agents)


@pytest.mark.fault("coordinator frozen for a minute (SIGSTOP)", ends="finished", in_vain=1)
def test_a_frozen_coordinator_goes_on_where_it_was(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """The companies lose it meanwhile. Would catch a coordinator that takes its own pause for theirs."""
    with federation(small, tmp_path, rounds=24) as made:
        agents, serve = made.agents(), made.serve()
        until(lambda: made.rounds() >= 3, "three rounds")
        serve.kill(signal.SIGSTOP)
        time.sleep(60)
        serve.kill(signal.SIGCONT)
        fault.hold(made, serve, rounds=24, agents=agents)
