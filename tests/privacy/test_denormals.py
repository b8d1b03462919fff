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
from support.private_training import setting

from fedblocks.client.training import train_block
from fedblocks.experiments.bench.answer_time import Attack
from fedblocks.privacy.denormals import flushed, flushes
from fedblocks.privacy.randomness import Randomness

SCRIPT = [sys.executable, str(Path(__file__).parents[1] / "support" / "flushing.py")]


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


@pytest.mark.parametrize("mode", ["local", "secure_step"])
def test_a_companys_training_runs_where_subnormals_are_flushed(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a way of training, or a backward pass, outside the thread that flushes."""
    s = setting("vit", f"privacy.mode={mode}", "privacy.colluders=0")
    policy = s.policy.model_copy(update={"allow_shared_noise": True, "least_colluders": 0})
    seen: list[tuple[bool, int]] = []
    loss = type(s.model).loss

    def watched(model: object, prediction: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append((flushes(), torch.get_num_threads()))
        prediction.register_hook(lambda g: seen.append((flushes(), torch.get_num_threads())))
        return loss(model, prediction, targets)  # type: ignore[arg-type]

    s.train(Randomness.from_seed(0))  # the machine is asked before; here, what trains
    monkeypatch.setattr(type(s.model), "loss", watched)
    train_block(s.model, 0, s.data, s.plan, 5, Randomness.from_seed(0), policy)
    assert len(seen) >= 4
    assert set(seen) == {(True, 1)}


@pytest.mark.slow
def test_without_flushing_the_answers_time_counts_planted_examples() -> None:
    """The control of the timing attack: would catch an attack that could not find a leak."""
    attack = Attack(400)
    found = (attack.slopes(8, flushing=(False,))[0].significance for _ in range(3))
    assert any(significance > 4 for significance in found)


@pytest.mark.slow
def test_the_answers_time_does_not_count_planted_examples() -> None:
    """Would catch `train_block` outside `flushed`: then the slope lies at ten standard errors of so many runs."""
    [found] = Attack(400).slopes(20, flushing=(True,))
    assert abs(found.significance) < 4


def _raise(error: BaseException) -> None:
    raise error
