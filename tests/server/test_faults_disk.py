"""Faults: the disk of a company, or that of the coordinator, is full, of real processes on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from support.faults import Fault
from support.full_disk import SmallDisk, small_disk
from support.hooks import At, Paced
from support.processes import federation, until

from fedblocks.settings import SimulationSettings

pytestmark = pytest.mark.slow
ROUNDS = 8


@contextmanager
def moved_to_a_small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    """What `folder` holds, on a disk of its own."""
    kept = shutil.move(folder, folder.with_name(f"{folder.name}-before"))
    with small_disk(folder, megabytes) as disk:
        shutil.copytree(kept, disk.folder, dirs_exist_ok=True)
        shutil.rmtree(kept)
        folder.chmod(0o700)
        yield disk


@pytest.mark.fault(
    "company disk full between rounds", ends="mended", in_vain=1, says="company-1: its disk is full (no_room)"
)  # fmt: skip
def test_a_company_whose_disk_is_full_is_not_ready(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Not a byte is left. Would catch others who pay for rounds that cannot end, and a ledger that lacks a row."""
    with (
        federation(small, tmp_path, rounds=ROUNDS) as made,
        moved_to_a_small_disk(made.homes[1], 160) as disk,
    ):
        agents, stopped = [made.agent(i, hook=Paced(0.5)) for i in range(3)], made.serve()
        until(lambda: made.rounds() >= 2, "two rounds")
        disk.fill()
        until(lambda: not stopped.running, "the run stops")
        disk.free()
        fault.hold(made, made.serve(), rounds=ROUNDS, agents=agents, stopped=stopped)


@pytest.mark.fault(
    "company disk full in a training, once it is charged", ends="mended", in_vain=1,
    says="company-1: its disk is full (no_room)",
)  # fmt: skip
def test_a_training_that_finds_the_disk_full_is_done_again_under_its_charge(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch a release that leaves without being kept, and one that is charged twice."""
    with (
        federation(small, tmp_path, rounds=ROUNDS) as made,
        moved_to_a_small_disk(made.homes[1], 160) as disk,
    ):
        full = At("fedblocks.client.app:train_block", times=3, do=disk.fill)
        agents = [made.agent(i, hook=full if i == 1 else None) for i in range(3)]
        stopped = made.serve()
        until(lambda: not stopped.running, "the run stops")
        disk.free()
        fault.hold(made, made.serve(), rounds=ROUNDS, agents=agents, stopped=stopped)
        assert [len(made.rows(i)) for i in range(3)] == [ROUNDS] * 3


POINTS = {
    "before a round": ("fedblocks.server.coordinator:run_round", False),
    "before the sum is written": ("fedblocks.server.release_log:OpenedSums.keep", False),
    "before the checkpoint": ("fedblocks.server.checkpoint:Checkpoint.save", False),
}


@pytest.mark.fault(
    "coordinator disk full, before a round, before a sum is written, before a checkpoint", ends="out of room",
    in_vain=0, says="no space left; nothing is lost: make room, then fedblocks coordinator run",
)  # fmt: skip
@pytest.mark.parametrize("point", POINTS)
def test_a_coordinator_whose_disk_is_full_ends_with_one_line_and_goes_on_later(
    small: SimulationSettings, tmp_path: Path, fault: Fault, point: str
) -> None:
    """Would catch a sum that companies have paid for and that finds no room, half-written files, a traceback."""
    function, after = POINTS[point]
    with federation(small, tmp_path, rounds=ROUNDS) as made:
        homes = made.homes
        made.companies = [shutil.move(home, tmp_path / home.name) for home in homes]
        with moved_to_a_small_disk(made.run.path, 48) as disk:
            agents = made.agents()
            stopped = made.serve(At(function, after=after, times=3, do=partial(disk.fill, 0)))
            until(lambda: not stopped.running, "the run stops")
            assert stopped.said.count("error:") == 1
            disk.free()
            fault.hold(made, made.serve(), rounds=ROUNDS, agents=agents, stopped=stopped)
