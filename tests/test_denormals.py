"""Subnormal numbers are flushed in every thread of private training, and nowhere else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fedblocks.experiments.bench.answer_time import Attack
from fedblocks.privacy.denormals import flushed, flushes

SCRIPT = [sys.executable, str(Path(__file__).parent / "flushing.py")]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_all_workers_flush_within_and_none_outside(threads: int) -> None:
    """Would catch a mode set in the calling thread alone, one that leaks out, and a check that sees neither."""
    ran = subprocess.run([*SCRIPT, str(threads)], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(ran.stdout)
    assert found["flushed"] == [True] * 3
    assert not found["main"]
    assert not found["another_thread"]
    assert not found["new_thread_afterwards"]
    assert found["afterwards"] == [False, 2.0**-1074, 2.0**-1074]  # float64 as accountants need it
    assert found["cores"] == [1, threads, threads]
    for ran_work, said in (found["nothing_set"], found["not_supported"]):
        assert not ran_work
        assert "subnormal numbers" in said


def test_a_result_and_an_error_come_back() -> None:
    """Would catch an error that ends in the other thread, and training that then looks done."""
    assert flushed(lambda: 3) == 3
    error = RuntimeError("from the work")
    with pytest.raises(RuntimeError) as caught:
        flushed(lambda: _raise(error))
    assert caught.value is error
    with pytest.raises(SystemExit):
        flushed(lambda: _raise(SystemExit(2)))
    assert not flushes()


def test_gradients_are_taken_in_the_same_thread() -> None:
    """Would catch a backward pass that runs where subnormals are not flushed."""

    def gradient() -> int:
        x = torch.full((4,), 2.0**-100, requires_grad=True)
        (x * 2.0**-20 * 2.0**-20).sum().backward()
        assert x.grad is not None
        return int(torch.full((4,), 2.0**-100).mul(x.grad).view(torch.int32).count_nonzero())

    assert gradient() == 4
    assert flushed(gradient) == 0


def test_an_interrupt_stops_the_work_and_is_raised() -> None:
    """Would catch Ctrl-C that leaves training running behind, or waits for its end."""
    with subprocess.Popen([*SCRIPT, "interrupt"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        try:
            said, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert json.loads(said) == {"work": ["stopped"]}
    assert time.monotonic() - started < 10


def test_a_flushed_call_takes_below_a_millisecond() -> None:
    """Would catch a check that is made again at every training; the best of many, since others use the machine."""
    flushed(lambda: None)
    times = []
    for _ in range(50):
        started = time.perf_counter()
        flushed(lambda: None)
        times.append(time.perf_counter() - started)
    assert min(times) < 1e-3


def test_without_flushing_the_answers_time_counts_planted_examples() -> None:
    """The control of the timing attack: would catch an attack that could not find a leak."""
    attack = Attack(400)
    found = (attack.slopes(8, flushing=(False,))[0].significance for _ in range(3))
    assert any(significance > 4 for significance in found)


def test_the_answers_time_does_not_count_planted_examples() -> None:
    """Would catch `train_block` outside `flushed`: then the slope lies at ten standard errors of so many runs."""
    [found] = Attack(400).slopes(20, flushing=(True,))
    assert abs(found.significance) < 4


def _raise(error: BaseException) -> None:
    raise error
