"""Every engine gives the bits of the default one: threads of one process."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fedblocks.blocks import digest
from fedblocks.errors import InputError, RunError
from fedblocks.experiments.simulation.engines import check_engine
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import epsilon_by_company, simulate
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.events import RoundFinished
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings, validated


def lossy(settings: SimulationSettings, **changes: Any) -> SimulationSettings:
    """With replies that are lost, by node: numbering must be the same everywhere."""
    companies = settings.companies.model_dump() | {"dropout": {"rate": 0.2, "phase": "train"}}
    return validated(SimulationSettings, settings.model_dump() | {"companies": companies} | changes)


def result_of(run: RunFolder) -> tuple[Any, ...]:
    model = Checkpoint.load(run.checkpoints).model
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in run.metrics()]
    return digest(model.shared, *model.blocks), rows


def children() -> set[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=False
    )
    return {int(pid) for pid in found.stdout.split()}


def test_processes_give_the_bits_of_threads(small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch state that is lost between messages, a company that is with two processes, other numbers of nodes,
    or processes that stay behind."""
    runs = [prepare(lossy(small), tmp_path / name / "run") for name in ("threads", "processes")]
    before = children()
    simulate(runs[0], workers=1)
    simulate(runs[1], engine="processes", workers=2)
    assert result_of(runs[0]) == result_of(runs[1])
    assert epsilon_by_company(runs[0]) == epsilon_by_company(runs[1])
    assert any(row["absent"] for row in runs[0].metrics()[1:])
    assert not {pid for pid in children() - before if "spawn_main" in _command(pid)}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.slow
def test_processes_without_the_protocol_give_the_bits_of_threads_with_it(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch sums over processes that are added up otherwise."""
    runs = [prepare(lossy(small, protocol=p), tmp_path / p / "run") for p in ("on", "off")]
    simulate(runs[0])
    simulate(runs[1], engine="processes", workers=3)
    assert result_of(runs[0]) == result_of(runs[1])


@pytest.mark.slow
def test_flowers_ray_backend_gives_the_bits_of_threads(small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch state that does not travel with the message, or actors with more threads than one."""
    runs = [prepare(lossy(small), tmp_path / name / "run") for name in ("threads", "ray")]
    simulate(runs[0])
    simulate(runs[1], engine="ray", workers=2)
    assert result_of(runs[0]) == result_of(runs[1])


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_which_goes_on_later(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a run that waits for ever, or one that cannot be resumed with another engine."""
    run, whole = (prepare(lossy(small), tmp_path / name / "run") for name in ("cut", "whole"))
    simulate(whole)
    before = children()

    def kill(event: Any) -> None:
        if isinstance(event, RoundFinished) and event.round == 2:
            for pid in children() - before:
                if "spawn_main" in _command(pid):
                    os.kill(pid, signal.SIGKILL)

    with pytest.raises(RunError, match="ended by the machine"):
        simulate(run, [kill], engine="processes", workers=2)
    assert Checkpoint.load(run.checkpoints).round == 2
    simulate(run)
    assert result_of(run)[0] == result_of(whole)[0]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"engine": "processes", "transport": "grpc"}, "--engine"),
        ({"workers": 0}, "--workers"),
        ({"workers": 1000}, "--workers"),
        ({"engine": "ray", "protocol": "off"}, "--engine"),
        ({"transport": "grpc", "protocol": "off"}, "--transport"),
        ({"engine": "processes", "device": "cuda"}, "--engine"),
    ],
)
def test_what_cannot_be_together_is_refused(
    options: dict[str, Any], field: str, small: SimulationSettings
) -> None:
    """Would catch an option that is silently dropped."""
    chosen = {"engine": "threads", "workers": None, "transport": "grid"} | options
    raw = small.model_dump() | {key: chosen.pop(key) for key in ("protocol", "device") if key in chosen}
    with pytest.raises(InputError, match=field):
        check_engine(validated(SimulationSettings, raw), **chosen)
