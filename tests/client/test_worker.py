"""An agent's worker is a process that may end at any time: nothing of a run or a session is lost with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.app import Context, Message
from support.deployed import without_seeds
from support.processes import until

from fedblocks.client.app import app
from fedblocks.client.company import Company
from fedblocks.client.worker_process import Worker
from fedblocks.errors import FedblocksError, ProtocolError, RunError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.protocol.messages import KEYS, TRAIN
from fedblocks.protocol.transport.frames import Incoming
from fedblocks.protocol.transport.records import decode, encode
from fedblocks.server.coordinator import coordinate
from fedblocks.server.grid import InProcessGrid
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings

# Of two interpreters of the same code, what an agent that only waits needs.
LARGEST_IDLE = 200 << 20


@pytest.fixture
def run(small: SimulationSettings, tmp_path: Path) -> RunFolder:
    """Three companies without seeds, one round."""
    companies = small.companies.model_copy(update={"count": 3})
    training = small.training.model_copy(update={"rounds": 1})
    made = prepare(small.model_copy(update={"companies": companies, "training": training}), tmp_path / "run")
    without_seeds(made)
    return made


@contextmanager
def with_a_worker(run: RunFolder, worker: Worker, killed_after: set[str]) -> Iterator[InProcessGrid]:
    """Node 1 is answered by the worker, which is killed after some kinds of message; the others in this process."""

    def routed(message: Message, context: Context) -> Message:
        if context.node_id != 1:
            return app(message, context)
        kind = message.metadata.message_type
        content = worker.answer(Incoming(1, kind, encode(message.content), 60.0))
        if kind in killed_after:
            pid = worker.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            os.waitid(
                os.P_PID, pid, os.WEXITED | os.WNOWAIT
            )  # all its threads: its first one is a zombie before
        return Message(decode(content), reply_to=message)

    grid = InProcessGrid(routed, 3, {"run-dir": str(run.path)})  # type: ignore[arg-type]
    try:
        yield grid
    finally:
        grid.close()


def test_a_session_outlives_the_worker_that_began_it(run: RunFolder) -> None:
    """Killed between any two phases of a round. Would catch session keys that are lost with a worker: the company
    would be charged for a release that no sum can hold."""
    home = run.companies / "company-0"
    answered: list[tuple[str, str | None]] = []
    with Worker(home, told=lambda kind, code: answered.append((kind, code))) as worker:
        with with_a_worker(run, worker, {KEYS, TRAIN}) as grid:
            coordinate(grid, run)
        assert (home / "joined.json").exists()
        worker.leave("an older run")
        assert (home / "joined.json").exists()
        worker.leave(run.plan().run)
        assert worker.pid is None
    assert not (home / "joined.json").exists()
    row = run.metrics()[1]
    assert (row["status"], row["survivors"]) == ("done", ["company-0", "company-1", "company-2"])
    assert answered == [(kind, None) for kind in ("join", "keys", "train", "confirm", "unmask")]
    with Company.deployed(home).ledger() as ledger:
        assert len(ledger.rows()) == 1


def test_what_stops_an_agent_is_said_by_its_worker_in_one_line(run: RunFolder) -> None:
    """The same errors as in one process, with the same exit codes; and a worker that dies is an error, no hang."""
    home = run.companies / "company-1"
    with Worker(home) as worker:
        (home / "data.npz").rename(home / "data.away")
        with pytest.raises(FedblocksError, match=r"no_data: \S+data\.npz is missing"):
            worker.start()
        shutil.copy(home / "policy.toml", home / "policy.away")
        (home / "policy.toml").write_text("company = 3\n")
        with pytest.raises(RunError, match=r"policy=\S+policy\.toml"):
            worker.start()
        os.kill(worker.pid or 0, signal.SIGSTOP)
        os.kill(worker.pid or 0, signal.SIGKILL)
        with pytest.raises(ProtocolError, match=r"internal: the agent's worker has ended"):
            worker._ask({"do": "leave", "run": ""})


def test_an_agent_that_waits_holds_no_pytorch() -> None:
    """The bar of 200 MB for an idle agent: what `agent up` imports in its own process, measured in a fresh one."""
    code = (
        "import sys, fedblocks.cli.main, fedblocks.client.daemon, fedblocks.protocol.observability; "
        "loaded = {'torch', 'scipy', 'pandas'} & set(sys.modules); "
        "print(sorted(loaded), next(x.split()[1] for x in open('/proc/self/status') if x.startswith('VmRSS')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, _, kilobytes = done.stdout.strip().rpartition(" ")
    assert loaded == "[]"
    assert int(kilobytes) << 10 < LARGEST_IDLE


@pytest.mark.slow
def test_a_worker_ends_with_its_agent_and_without_work(run: RunFolder) -> None:
    """SIGKILL to the agent, and a pause. Would catch a worker that stays, and trains beside the next agent's."""
    home = run.companies / "company-0"
    code = (
        "import sys, time; from pathlib import Path; from fedblocks.client.worker_process import Worker; "
        f"worker = Worker(Path({str(home)!r})); worker.start(); print(worker.pid, flush=True); time.sleep(600)"
    )
    agent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert agent.stdout is not None
        pid = int(agent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        (cores,) = [s for s in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core file" in s]
        assert cores.split()[-3:-1] == ["0", "0"]  # a crash writes no keys and no examples to disk
        agent.kill()
        until(lambda: not alive(pid), "the worker has ended")
    finally:
        agent.kill()
        agent.wait()
    with Worker(home, idle=0.5) as worker:
        worker.start()
        until(lambda: worker.pid is None, "the worker has ended without work")
        worker.start()


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
