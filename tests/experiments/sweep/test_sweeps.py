"""Whole sweeps in real processes: failures, interruptions, a process that is killed; what is done stays done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL

from fedblocks.experiments.sweep.table import Row, read_table

pytestmark = pytest.mark.slow
_PATIENCE = 300.0


@contextmanager
def sweep(private_file: Path, runs: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`fedblocks sweep digits`, small, in a session of its own, which is ended whatever happens."""
    own = [each for each in SMALL if each.partition("=")[0] not in " ".join(words)]
    small = [word for each in (*own, f"data.private.source={private_file}") for word in ("--set", each)]
    code = "from fedblocks.cli.main import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "sweep",
        "digits",
        *small,
        *words,
        "--runs-dir",
        str(runs),
        "--json",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    out, err = process.communicate(timeout=_PATIENCE)
    assert out, err
    return process.returncode, json.loads(out)


def rows_of(runs: Path) -> list[Row]:
    return [row for path in runs.glob("sweep-*/table.parquet") for row in read_table(path)]


def workers_of(pid: int) -> list[int]:
    """The processes that this one has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    named = {int(each): Path(f"/proc/{each}/cmdline") for each in found}
    return [each for each, words in named.items() if words.exists() and b"spawn_main" in words.read_bytes()]


def until(holds: Any, what: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_cell_that_fails_is_told_and_tried_again_and_the_rest_is_done_once(
    private_file: Path, tmp_path: Path
) -> None:
    """Would catch a failure that stops the rest or passes for success, and cells that are run twice."""
    # 0.05 is so little noise that epsilon 3 does not pay for the run.
    words = ("--over", "privacy.noise_multiplier=0.05,50", "--set", "privacy.epsilon=3", "--no-baselines")
    with sweep(private_file, tmp_path, *words) as process:
        code, said = ended(process)
    assert (code, said["cells"], said["failed"]) == (3, 2, 1)
    by_status = {row.status: row for row in rows_of(tmp_path)}
    assert "privacy.noise_multiplier" in by_status["failed"].reason
    result = next(tmp_path.glob(f"sweep-*/cells/{by_status['done'].cell}/result.json"))
    before = result.stat().st_mtime_ns
    with sweep(private_file, tmp_path, *words) as process:
        code, said = ended(process)
    assert (code, said["failed"]) == (3, 1)
    assert result.stat().st_mtime_ns == before
    assert by_status["done"] in rows_of(tmp_path)


def test_an_interrupted_sweep_keeps_what_is_done_leaves_no_process_and_goes_on(
    private_file: Path, tmp_path: Path
) -> None:
    """Would catch cells that are lost with Ctrl-C, processes that live on, and a second run that begins anew."""
    words = ("--over", "privacy.epsilon=2,3,4,5", "--no-baselines", "--processes", "1")
    with sweep(private_file, tmp_path, *words) as process:
        until(lambda: rows_of(tmp_path), "a cell ends")
        until(lambda: workers_of(process.pid), "another is at work")
        workers = workers_of(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=_PATIENCE)
        assert process.returncode == 130
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), "its processes end")
    done = rows_of(tmp_path)
    assert 1 <= len(done) < 4
    assert {row.status for row in done} == {"done"}
    with sweep(private_file, tmp_path, *words) as process:
        code, said = ended(process)
    assert (code, said["failed"], len(said["rows"])) == (0, 0, 4)
    assert all(row in rows_of(tmp_path) for row in done)


def test_a_process_that_the_machine_ends_is_a_failed_cell_and_no_end_of_the_sweep(
    private_file: Path, tmp_path: Path
) -> None:
    """Would catch a sweep that waits for ever for a killed process, or takes its cell for done."""
    words = ("--over", "training.rounds=3,4", "--no-baselines", "--processes", "1")
    with sweep(private_file, tmp_path, *words) as process:
        until(lambda: list(tmp_path.glob("sweep-*/cells/*/plan.json")), "a cell begins")
        [worker] = workers_of(process.pid)
        os.kill(worker, signal.SIGKILL)
        code, said = ended(process)
    assert (code, said["failed"]) == (3, 1)
    [lost] = [row for row in said["rows"] if row["status"] == "failed"]
    assert "signal 9" in lost["reason"]
    with sweep(private_file, tmp_path, *words) as process:
        code, said = ended(process)
    assert (code, said["failed"]) == (0, 0)


def test_two_sweeps_in_one_folder_are_refused(private_file: Path, tmp_path: Path) -> None:
    """Would catch two processes that write one table."""
    words = ("--over", "training.rounds=3,4", "--no-baselines", "--processes", "1")
    with sweep(private_file, tmp_path, *words) as first:
        until(lambda: list(tmp_path.glob("sweep-*/sweep.json")), "the first begins")
        with sweep(private_file, tmp_path, *words) as second:
            code, said = ended(second)
        assert code == 2
        assert f"process {first.pid} is at work" in said["message"]
