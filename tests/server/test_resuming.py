"""One process a run, and only from checkpoints that are whole."""

from __future__ import annotations

import errno
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fedblocks.blocks import digest
from fedblocks.blocks.state import State
from fedblocks.cli.main import app as cli
from fedblocks.cli.progress import audit_with_progress, continue_with_progress
from fedblocks.errors import InputError, RunError
from fedblocks.experiments.presets import load_settings
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.pretraining import pretrain
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.run_folder import RunFolder
from fedblocks.server.run_lock import exclusive
from fedblocks.settings import SimulationSettings
from fedblocks.threat_model.auditing import AuditDesign

FB = (sys.executable, "-c", "from fedblocks.cli.main import main; main()")


@pytest.fixture
def run(small: SimulationSettings, tmp_path: Path) -> RunFolder:
    training = small.training.model_copy(update={"rounds": 3})
    return prepare(small.model_copy(update={"training": training}), tmp_path / "run")


@pytest.fixture(scope="module")
def done(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    training = small.training.model_copy(update={"rounds": 3})
    run = prepare(small.model_copy(update={"training": training}), tmp_path_factory.mktemp("done") / "run")
    simulate(run)
    return run


@pytest.fixture
def finished(done: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of a finished run."""
    return RunFolder(Path(shutil.copytree(done.path, tmp_path / "run")))


@contextmanager
def another_process_in(folder: Path, name: str = "run.lock") -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder and does nothing else."""
    code = (
        "import sys, time; from pathlib import Path; from fedblocks.server.run_lock import exclusive\n"
        "with exclusive(Path(sys.argv[1]), sys.argv[2]): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(folder), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def state_of(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".lock"}


def test_of_two_processes_that_resume_one_run_the_second_is_refused_and_after_a_kill_let_in(
    run: RunFolder,
) -> None:
    """Would catch doubled metrics and rounds (74 done of 60), and a lock that outlives its holder."""
    resume = [*FB, "simulate", "--resume", str(run.path), "--json"]
    first = subprocess.Popen(resume, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while not run.metrics():  # it is at work
        assert first.poll() is None
    first.send_signal(signal.SIGSTOP)
    before = state_of(run.path)
    second = subprocess.run(resume, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert f"process {first.pid} is at work here" in second.stderr
    assert second.stderr.count("\n") == 1
    assert state_of(run.path) == before
    first.kill()
    first.wait()
    assert simulate(run)["rounds_done"] == 3
    assert [row["round"] for row in run.metrics()] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "work",
    [
        lambda run: continue_with_progress(
            run, Console(quiet=True), with_reference=False, with_controls=False
        ),
        simulate,
        lambda run: simulate(run, transport="grpc"),
        lambda run: audit_with_progress(run, AuditDesign(), Console(quiet=True)),
    ],
)
def test_whatever_writes_into_a_run_is_refused_while_another_process_has_it(
    run: RunFolder, work: Any
) -> None:
    before = state_of(run.path)
    with another_process_in(run.path) as process, pytest.raises(RunError, match=f"process {process.pid} "):
        work(run)
    assert state_of(run.path) == before


def test_a_coordinator_that_serves_a_run_is_refused_before_it_listens(run: RunFolder, tmp_path: Path) -> None:
    from fedblocks.protocol.transport.certificates import COORDINATOR, OwnCertificate

    OwnCertificate.create(COORDINATOR).save(tmp_path / "plane")
    (tmp_path / "plane" / "companies").mkdir()
    (tmp_path / "plane" / "transport.toml").write_text('listen = "127.0.0.1:1"\n')
    with another_process_in(run.path):
        done = CliRunner().invoke(cli, ["transport", "serve", str(run.path), str(tmp_path / "plane")])
    assert isinstance(done.exception, RunError)
    assert "is at work here" in str(done.exception)


def test_a_thread_may_hold_a_folder_twice_and_another_may_not(tmp_path: Path) -> None:
    refused = []

    def other() -> None:
        try:
            with exclusive(tmp_path):
                pass
        except RunError as error:
            refused.append(error)

    with exclusive(tmp_path), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1
    other()
    assert len(refused) == 1


def test_a_block_is_pretrained_by_one_process_and_different_blocks_by_several(
    private_file: Path, tmp_path: Path
) -> None:
    settings = load_settings("digits", ["pretraining.steps=2", "model.layers=3", "model.hidden_size=16"])
    folder = tmp_path / "model"
    pretrain(settings, folder, block=0)
    with another_process_in(folder, "training-1.lock"):
        with pytest.raises(RunError, match="is at work here"):
            pretrain(settings, folder, block=1)
        assert pretrain(settings, folder, block=2)["untrained"] == [1]
    assert pretrain(settings, folder)["untrained"] == []


@pytest.mark.parametrize("name", ["block-0", "block-1", "shared", "optimizer-0", "optimizer-1"])
def test_a_checkpoint_that_lacks_a_file_is_refused_by_name(finished: RunFolder, name: str) -> None:
    """Would catch a last block or optimiser that is gone, and the rest taken for the whole."""
    file = finished.checkpoints / "round-0003" / f"{name}.safetensors"
    whole = file.read_bytes()
    for harm in (file.unlink, lambda: file.write_bytes(whole[:40])):
        harm()
        before = state_of(finished.path)
        with pytest.raises(RunError, match=re.escape(file.name)):
            simulate(finished)
        with pytest.raises(RunError, match="put it back, or remove"):
            Checkpoint.load(finished.checkpoints)
        assert state_of(finished.path) == before
        file.write_bytes(whole)
    Checkpoint.load(finished.checkpoints)


def renamed(state: State) -> None:
    state["other"] = state.popitem()[1]


def lacking(state: State) -> None:
    state.popitem()


def of_another_shape(state: State) -> None:
    name = max(state, key=lambda name: state[name].numel())
    state[name] = state[name][:-1]


def of_another_type(state: State) -> None:
    name = max(state, key=lambda name: state[name].numel())
    state[name] = state[name].double()


def not_finite(state: State) -> None:
    for tensor in state.values():
        tensor.fill_(float("nan"))


@pytest.mark.parametrize("change", [renamed, lacking, of_another_shape, of_another_type, not_finite])
@pytest.mark.parametrize("name", ["block-1", "shared", "optimizer-0"])
def test_a_checkpoint_of_other_tensors_is_refused_before_anybody_is_charged(
    finished: RunFolder, name: str, change: Callable[[State], None]
) -> None:
    """Would catch a state that every company refuses, and an optimiser that fails once all have been charged."""
    file = finished.checkpoints / "round-0003" / f"{name}.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    state = load_file(file)
    change(state)
    save_file(state, file, metadata)
    with pytest.raises(RunError, match=r"not the state of round 3|optimiser state"):
        simulate(finished)


def test_a_copy_beside_the_checkpoints_is_none_of_them(finished: RunFolder) -> None:
    for name in ("round-0003.bak", "round-x", "round-0009 (copy)", "round-9"):
        shutil.copytree(finished.checkpoints / "round-0003", finished.checkpoints / name)
    assert Checkpoint.load(finished.checkpoints).round == 3
    Checkpoint.load(finished.checkpoints, 3).save(finished.checkpoints)
    assert (finished.checkpoints / "round-0003.bak").is_dir()


def test_without_its_damaged_checkpoint_a_run_goes_on_from_the_one_before(finished: RunFolder) -> None:
    """The way out that the refusal names."""
    last = Checkpoint.load(finished.checkpoints).model
    shutil.rmtree(finished.checkpoints / "round-0003")
    assert simulate(finished)["rounds_done"] == 3
    assert digest(*Checkpoint.load(finished.checkpoints).model.blocks) == digest(*last.blocks)


def test_a_full_disk_is_one_line_that_says_how_to_go_on(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Checkpoint.save

    def full(checkpoint: Checkpoint, folder: Path) -> None:
        if checkpoint.round == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(checkpoint, folder)

    monkeypatch.setattr(Checkpoint, "save", full)
    with pytest.raises(RunError, match=f"no space left.*--resume {re.escape(str(run.path))}"):
        continue_with_progress(run, Console(quiet=True), with_reference=False, with_controls=False)
    monkeypatch.undo()
    assert simulate(run)["rounds_done"] == 3


def test_injected_failures_are_refused_where_companies_are_real(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a deployment that silently drops, or silently ignores, what the settings ask to be lost."""
    dropout = small.companies.dropout.model_copy(update={"rate": 0.25})
    settings = small.model_copy(update={"companies": small.companies.model_copy(update={"dropout": dropout})})
    run = prepare(settings, tmp_path / "run")
    with pytest.raises(InputError, match=r"companies\.dropout\.rate=0\.25: only `fedblocks simulate`"):
        RunFolder.deployable(run.path)
    assert RunFolder.existing(run.path) == run
