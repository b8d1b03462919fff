"""Faults: a process is killed (SIGKILL) in a phase of a round, of real processes on loopback, and started again."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.faults import Fault
from support.hooks import At, KilledInPhase
from support.processes import federation, until

from fedblocks.protocol.messages import CONFIRM, JOIN, KEYS, TRAIN, UNMASK
from fedblocks.settings import SimulationSettings

pytestmark = pytest.mark.slow


@pytest.mark.fault(
    "agent killed in each phase (join, keys, train, confirm, unmask), before and after the message is handled, and "
    "restarted; with `training.reserve` for the phase in which the others have helped to open the sum",
    ends="finished",
    in_vain=1,
    per="a kill",
)
@pytest.mark.parametrize("phase", [JOIN, KEYS, TRAIN, CONFIRM, UNMASK])
def test_an_agent_that_is_killed_in_a_phase_is_back_within_the_round(
    small: SimulationSettings, tmp_path: Path, fault: Fault, phase: str
) -> None:
    """Three companies, of whom none may be missing. Would catch a phase in which what dies with the process is
    needed by the next one, and a charge that is made again."""
    training = small.training.model_copy(update={"reserve": 2 if phase == UNMASK else 0})
    with federation(small.model_copy(update={"training": training}), tmp_path, rounds=6) as made:
        agents, serve = [made.agent(0), made.agent(1)], made.serve()
        for handled in (False, True):
            dying = made.agent(2, hook=KilledInPhase(phase, handled))
            until(lambda dying=dying: not dying.running, f"killed in {phase}")
            assert dying.process.exitcode == -9
        agents.append(made.agent(2))
        fault.hold(made, serve, rounds=6, faults=2, agents=agents)


POINTS = {
    "offer": "attendance:offer",
    "cohort": "run_folder:RunFolder.save_cohort",
    "keys": "secure_sum:SecureSum.keys",
    "train": "secure_sum:SecureSum.train",
    "confirm": "secure_sum:SecureSum.confirm",
    "sum on disk": "release_log:OpenedSums.keep",
    "metrics": "run_folder:RunFolder.append_metrics",
    "checkpoint": "checkpoint:Checkpoint.save",
}


@pytest.mark.fault(
    "coordinator killed in each phase (join, keys, train, confirm, the sum on disk, metrics, checkpoint) and resumed",
    ends="resumed",
    in_vain=0,
)
@pytest.mark.parametrize("point", POINTS)
def test_a_coordinator_that_is_killed_in_a_phase_goes_on_without_charging_anew(
    small: SimulationSettings, tmp_path: Path, fault: Fault, point: str
) -> None:
    """Would catch what a crash leaves half-written, and a round that is paid for twice."""
    with federation(small, tmp_path, rounds=4) as made:
        agents = made.agents()
        for times in (1, 1) if point == "offer" else (1, 2):
            dying = made.serve(At(f"fedblocks.server.{POINTS[point]}", after=True, times=times))
            until(lambda dying=dying: not dying.running, f"killed in {point}")
        fault.hold(made, made.serve(), rounds=4, faults=2, agents=agents, stopped=dying)


@pytest.mark.fault(
    "coordinator killed between a sum's opening and its file, and resumed; with `training.reserve`",
    ends="resumed",
    in_vain=1,
)
def test_a_sum_that_a_killed_coordinator_had_opened_and_not_written_costs_a_round_of_the_reserve(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch a run that cannot end, since companies answer with shares once."""
    training = small.training.model_copy(update={"reserve": 1})
    with federation(small.model_copy(update={"training": training}), tmp_path, rounds=4) as made:
        agents = made.agents()
        dying = made.serve(At("fedblocks.server.release_log:OpenedSums.keep", times=2))
        until(lambda: not dying.running, "killed before the sum is on disk")
        fault.hold(made, made.serve(), rounds=4, agents=agents, stopped=dying)
