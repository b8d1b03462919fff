"""The same apps under `flwr run .` on Flower's simulation engine (Ray): same result as in one process."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

import fedblocks
from fedblocks.blocks import digest
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import epsilon_by_company, simulate, summary
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.events import Event, RoundFinished
from fedblocks.settings import SimulationSettings

ROOT = Path(fedblocks.__file__).parent
BIN = Path(sys.executable).parent


@pytest.fixture
def flower_home(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Flower keeps its state in the test folder; the SuperLink that `flwr run` leaves behind is stopped."""
    env = os.environ | {
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    (tmp_path / "flwr").mkdir()
    yield env
    found = subprocess.run(
        ["pgrep", "-f", str(tmp_path / "flwr")], capture_output=True, text=True, check=False
    )
    for pid in found.stdout.split():
        os.kill(int(pid), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.skipif(" " in sys.prefix, reason="Flower's SuperLink cannot start from a path with a space")
def test_flower_simulation_engine_gives_the_same_model(
    small: SimulationSettings, tmp_path: Path, flower_home: dict[str, str]
) -> None:
    """Would catch state that lives in one process only, or results that depend on the transport."""
    runs = [prepare(small, tmp_path / name) for name in ("in-process", "engine")]
    simulate(runs[0])
    command = [
        "flwr", "run", str(ROOT), "--stream",
        "--run-config", f'run-dir="{runs[1].path}"',
        "--federation-config", "num-supernodes=5",
    ]  # fmt: skip
    done = subprocess.run(
        command, env=flower_home, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
    )
    assert Checkpoint.load(runs[1].checkpoints).round == 4, done.stdout[-3000:] + done.stderr[-1000:]
    states = [Checkpoint.load(run.checkpoints).model for run in runs]
    assert digest(states[0].shared, *states[0].blocks) == digest(states[1].shared, *states[1].blocks)
    assert epsilon_by_company(runs[0]) == epsilon_by_company(runs[1])
    assert summary(runs[1])["rounds"] == 4
    bundles = list((tmp_path / "flwr").rglob("*.py"))
    assert not bundles, f"the bundle carried code: {shlex.join(map(str, bundles))}"


def listening() -> set[str]:
    """This process's sockets that take connections, as the kernel has them: gRPC opens its own beside Python's."""
    found = set()
    for table, state, inode in (("tcp", 3, 9), ("tcp6", 3, 9), ("unix", 3, 6)):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[state] in ("0A", "00010000"):  # TCP_LISTEN, __SO_ACCEPTCON
                found.add(f"socket:[{fields[inode]}]")
    own = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            own.add(os.readlink(descriptor))
    return found & own


def test_the_in_process_grid_listens_nowhere(small: SimulationSettings, tmp_path: Path) -> None:
    """The embedded default must not open a server, of whatever library: asked after every round, of the kernel."""
    before = listening()
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert len(listening() - before) == 1
    server.stop(None).wait()
    seen = []

    def look(event: Event) -> None:
        if isinstance(event, RoundFinished):
            seen.append(listening() - before)

    simulate(prepare(small, tmp_path / "run"), [look])
    assert seen == [set()] * 5
