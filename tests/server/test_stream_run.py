"""Whole runs over the data plane: the same bits as function calls, killed companies, Flower before and behind it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from support.commands import Machine, run_command

from fedblocks.blocks import digest
from fedblocks.client.app import app
from fedblocks.experiments.bench.transport_flower import free_port
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import epsilon_by_company, simulate
from fedblocks.protocol.transport import OwnCertificate
from fedblocks.protocol.transport.certificates import COORDINATOR
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.coordinator import coordinate
from fedblocks.server.grid import InProcessGrid, OwnGrid
from fedblocks.server.run_folder import RunFolder
from fedblocks.server.stream import StreamGrid
from fedblocks.server.stream.flower_fallback import data_plane
from fedblocks.settings import DropoutSettings, SimulationSettings


def final_digest(run: RunFolder) -> bytes:
    model = Checkpoint.load(run.checkpoints).model
    return digest(model.shared, *model.blocks)


def timeless(run: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.metrics()]


@pytest.fixture(scope="module")
def by_calls(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = prepare(small, tmp_path_factory.mktemp("calls") / "run")
    simulate(run)
    return run


def test_the_data_plane_gives_the_same_bits_as_function_calls(
    by_calls: RunFolder, small: SimulationSettings, tmp_path: Path
) -> None:
    """Sums, blocks, metrics and ledgers; would catch whatever a way changes in a message."""
    run = prepare(small, tmp_path / "run")
    simulate(run, transport="grpc")
    assert final_digest(run) == final_digest(by_calls)
    assert timeless(run) == timeless(by_calls)
    assert epsilon_by_company(run) == epsilon_by_company(by_calls)


def test_groups_that_train_at_once_share_the_data_plane(small: SimulationSettings, tmp_path: Path) -> None:
    companies = small.companies.model_copy(update={"count": 6})
    training = small.training.model_copy(update={"assignment": "parallel"})
    parallel = small.model_copy(update={"companies": companies, "training": training})
    runs = [prepare(parallel, tmp_path / way) for way in ("grid", "grpc")]
    simulate(runs[0])
    simulate(runs[1], transport="grpc")
    assert all(len(row["tasks"]) == 2 for row in runs[1].metrics()[1:])
    assert timeless(runs[0]) == timeless(runs[1])
    assert final_digest(runs[0]) == final_digest(runs[1])


@pytest.mark.parametrize("phase", ["keys", "train", "unmask"])
def test_dropouts_fall_alike_on_both_ways(small: SimulationSettings, tmp_path: Path, phase: str) -> None:
    dropout = DropoutSettings(rate=0.25, phase=phase)  # type: ignore[arg-type]
    companies = small.companies.model_copy(update={"dropout": dropout})
    lossy = small.model_copy(update={"companies": companies, "seed": 4})
    runs = [prepare(lossy, tmp_path / way) for way in ("grid", "grpc")]
    simulate(runs[0])
    simulate(runs[1], transport="grpc")
    assert any(row["absent"] for row in runs[0].metrics()[1:])
    assert timeless(runs[0]) == timeless(runs[1])
    assert final_digest(runs[0]) == final_digest(runs[1])


class FlowerLike(OwnGrid):
    """Delivers as a SuperLink does: a message is worked on while the coordinator goes on, one a node at a time."""

    def __init__(self, run: RunFolder, companies: int) -> None:
        self.calls = InProcessGrid(app, companies, {"run-dir": str(run.path)})
        self._apps = self.calls._contexts
        self._locks = {node: threading.Lock() for node in self._apps}
        self._replies: dict[str, Message] = {}
        self.kinds: list[str] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            stamped = self.calls._stamped(message)
            self.kinds.append(message.metadata.message_type)
            ids.append(stamped.metadata.message_id)
            threading.Thread(target=self._work, args=(stamped,), daemon=True).start()
        return ids

    def _work(self, message: Message) -> None:
        torch.set_num_threads(1)
        node = message.metadata.dst_node_id
        with self._locks[node]:
            self._replies[message.metadata.message_id] = app(message, self._apps[node])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        sent = list(messages)
        self.kinds += [message.metadata.message_type for message in sent]
        return self.calls.send_and_receive(sent, timeout=timeout)

    def get_node_ids(self) -> Iterable[int]:
        return self.calls.get_node_ids()


def set_up(run: RunFolder, folder: Path, companies: int, port: int, gather: float = 20.0) -> None:
    """The coordinator's folder and each company's, as people would make them by hand."""
    coordinator = OwnCertificate.create(COORDINATOR)
    coordinator.save(folder)
    (folder / "transport.toml").write_text(f'listen = "127.0.0.1:{port}"\ngather = {gather}\n')
    (folder / "companies").mkdir()
    for i in range(companies):
        name, home = f"company-{i}", run.companies / f"company-{i}" / "transport"
        own = OwnCertificate.create(name)
        own.save(home)
        (folder / "companies" / f"{name}.pem").write_bytes(own.certificate)
        (home / "coordinator.pem").write_bytes(coordinator.certificate)
        (home / "transport.toml").write_text(f'address = "127.0.0.1:{port}"\n')


@pytest.fixture
def port() -> int:
    return free_port()


def test_one_flower_message_a_company_carries_the_whole_run(
    by_calls: RunFolder, small: SimulationSettings, tmp_path: Path, port: int
) -> None:
    run = prepare(small, tmp_path / "run")
    set_up(run, tmp_path / "plane", 5, port)
    grid = FlowerLike(run, 5)
    with data_plane(grid, tmp_path / "plane", run) as chosen:
        assert isinstance(chosen, StreamGrid)
        coordinate(chosen, run)
    assert grid.kinds == ["query.stream"] * 5
    assert final_digest(run) == final_digest(by_calls)
    assert epsilon_by_company(run) == epsilon_by_company(by_calls)
    log = (run.companies / "company-0" / "company.log").read_text()
    assert "data plane: done" in log


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken", ["company not set up", "company cannot reach it", "port in use", "no folder"]
)
def test_a_data_plane_that_does_not_come_up_leaves_the_run_to_flower(
    by_calls: RunFolder, small: SimulationSettings, tmp_path: Path, port: int, broken: str
) -> None:
    run = prepare(small, tmp_path / "run")
    set_up(run, tmp_path / "plane", 5, port, gather=3.0)
    own = run.companies / "company-2" / "transport" / "transport.toml"
    if broken == "company not set up":
        own.unlink()
    if broken == "company cannot reach it":
        own.write_text('address = "127.0.0.1:1"\n')
    grid = FlowerLike(run, 5)
    folder = None if broken == "no folder" else tmp_path / "plane"
    with occupied(port if broken == "port in use" else 0), data_plane(grid, folder, run) as chosen:
        assert chosen is grid
        coordinate(chosen, run)
    assert final_digest(run) == final_digest(by_calls)


class occupied:
    """Somebody else on a port."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", port))
        self._socket.listen()

    def __enter__(self) -> None: ...

    def __exit__(self, *args: object) -> None:
        self._socket.close()


def command(*words: str | Path, **more: Any) -> subprocess.Popen[str]:
    start = "import sys; from fedblocks.cli.main import main; sys.argv[0] = 'fedblocks'; main()"
    return subprocess.Popen(
        [sys.executable, "-c", start, *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ, **more,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_of_real_processes_survives_one_that_is_killed(
    small: SimulationSettings, tmp_path: Path, port: int
) -> None:
    """`fedblocks transport certificate|agent|serve`, one process each; SIGKILL to one company after round one."""
    companies = small.companies.model_copy(update={"count": 4})
    run = prepare(small.model_copy(update={"companies": companies}), tmp_path / "run")
    set_up(run, tmp_path / "plane", 4, port, gather=90.0)
    for home in run.companies.iterdir():  # a deployed company draws its noise from the system
        policy = home / "policy.toml"
        kept = [line for line in policy.read_text().splitlines() if not line.startswith("simulation_seed")]
        policy.write_text("\n".join(kept))
    serve = command("transport", "serve", run.path, tmp_path / "plane", "--json")
    agents = [command("transport", "agent", home, "--json") for home in sorted(run.companies.iterdir())]
    try:
        assert serve.stderr is not None
        for line in serve.stderr:
            if line.startswith("round 1"):
                agents[3].send_signal(signal.SIGKILL)
                break
        out, said = serve.communicate(timeout=120)
        assert serve.returncode == 0, said
        assert json.loads(out.splitlines()[-1])["rounds_done"] == 4
        ends = [json.loads(agent.communicate(timeout=30)[0]) for agent in agents[:3]]
    finally:
        for process in (serve, *agents):
            process.kill()
            process.wait()
    assert [end["ended"] for end in ends] == ["done"] * 3
    rows = run.metrics()[1:]
    assert [row["status"] for row in rows] == ["done"] * 4
    assert "company-3" in rows[-1]["absent"]
    assert rows[-1]["survivors"] == ["company-0", "company-1", "company-2"]


def test_a_certificate_is_made_by_command(tmp_path: Path) -> None:
    for words in (["--company", "company-0"], ["--coordinator"]):
        folder = tmp_path / words[0]
        done = run_command(["transport", "certificate", str(folder), *words], tmp_path, Machine())
        assert done.exit_code == 0
        assert Path(done.stdout.strip()) == folder / "own.pem"
    done = run_command(["transport", "certificate", str(tmp_path / "x")], tmp_path, Machine())
    assert "company" in done.stderr
    assert done.exit_code == 2
