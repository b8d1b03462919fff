"""Under Flower: a company's SuperNode that is killed and started again takes part again in the same run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.deployed import guarded, without_seeds
from support.faults import Fault

import fedblocks
from fedblocks.experiments.bench.transport_flower import _CONNECTION, flower_env, free_port, superlink
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings

pytestmark = pytest.mark.slow
ROOT = Path(fedblocks.__file__).parent


def node(home: Path, link: int, env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A SuperNode in a session of its own, so that it can be killed with the processes that it has started."""
    command = [*guarded(home), "--insecure", "--superlink", f"127.0.0.1:{link}", "--port", str(free_port())]
    with log.open("ab") as file:
        return subprocess.Popen(
            command, env=env, cwd=log.parent, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def rounds(run: RunFolder) -> int:
    return max(0, len(run.metrics()) - 1)


@pytest.mark.fault("SuperNode killed and restarted (Flower)", ends="finished", in_vain=0)
@pytest.mark.skipif(" " in sys.prefix, reason="Flower's SuperLink cannot start from a path with a space")
def test_a_killed_supernode_takes_part_again(small: SimulationSettings, tmp_path: Path, fault: Fault) -> None:
    """Three companies, of whom none may be missing. Would catch joined state that Flower's context alone holds: the
    run then ended as `finished:completed` with rounds that opened nothing."""
    count = small.companies.model_copy(update={"count": 3})
    training = small.training.model_copy(
        update={"rounds": 2, "message_timeout": 120.0, "evaluate_every": 1000}
    )
    run = prepare(small.model_copy(update={"companies": count, "training": training}), tmp_path / "run")
    homes, link, home = without_seeds(run), free_port(), tmp_path / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(_CONNECTION.format(port=link), "utf-8")
    env = flower_env(home)
    with superlink(link, [], env, tmp_path):
        nodes = [node(home, link, env, tmp_path / f"{home.name}.log") for home in homes]
        command = ["flwr", "run", str(ROOT), "here", "--stream", "--run-config", f'run-dir="{run.path}"']
        with (tmp_path / "flwr.log").open("wb") as file:
            started = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 800
            while rounds(run) < 1:
                assert time.monotonic() < deadline, (tmp_path / "flwr.log").read_text()[-3000:]
                time.sleep(1)
            os.killpg(nodes[0].pid, signal.SIGKILL)
            nodes[0].wait()
            while rounds(run) < 2:
                if nodes[0].poll() is not None:  # the SuperLink counts the dead one as online for a while
                    nodes[0] = node(homes[0], link, env, tmp_path / "restarted.log")
                assert time.monotonic() < deadline, (tmp_path / "flwr.log").read_text()[-3000:]
                time.sleep(1)
        finally:
            for each in nodes:
                if each.poll() is None:
                    os.killpg(each.pid, signal.SIGKILL)
            started.terminate()
            started.wait()
    fault.books(run, homes, rounds=2)
