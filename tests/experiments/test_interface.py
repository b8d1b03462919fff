"""The Python interface gives what the command line gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import SMALL

from fedblocks import audit, load_run, resume, simulate
from fedblocks.blocks import digest
from fedblocks.errors import InputError, RunError
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.events import Event, RoundFinished, RunFinished, RunStarted
from fedblocks.server.run_folder import RunFolder


def small_run(private_file: Path) -> dict[str, object]:
    found: dict[str, object] = {"data.private.source": str(private_file)}
    for text in SMALL:
        key, _, value = text.partition("=")
        found[key] = float(value) if "." in value else int(value)
    return found


def public_model(run: RunFolder) -> bytes:
    model = Checkpoint.load(run.checkpoints, 0).model
    return digest(model.shared, *model.blocks)


def test_simulate_load_resume_and_audit(private_file: Path, tmp_path: Path) -> None:
    """Would catch an interface that loses overrides, rounds or results on the way."""
    chosen = small_run(private_file) | {"privacy.epsilon": 3.0}
    events: list[Event] = []
    run = simulate("digits", chosen, runs_dir=tmp_path, subscribers=[events.append])
    assert [event.round for event in events if isinstance(event, RoundFinished)] == [0, 1, 2, 3, 4]
    assert (events[0], events[-1]) == (RunStarted(rounds=4, done=0), RunFinished(rounds=4))
    assert run.settings().privacy.epsilon == 3.0
    again, resumed = load_run(run.path), list[Event]()
    assert resume(again, subscribers=[resumed.append])["rounds_done"] == 4
    assert resumed == [RunStarted(rounds=4, done=4), RunFinished(rounds=4)]
    assert audit(again, minutes=0.05, block=0).run == run.path.name
    assert again.read_json("audit.json") is not None


def test_what_is_wrong_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"privacy\.epsilon"):
        simulate("digits", {"privacy.epsilon": -1.0}, runs_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RunError, match="not a run folder"):
        load_run(tmp_path)


def test_a_run_computes_on_one_core_and_leaves_the_callers_setting(
    private_file: Path, tmp_path: Path
) -> None:
    """Would catch bits that follow the cores of a notebook's machine, and a notebook left with one core."""
    chosen, cores = small_run(private_file) | {"training.rounds": 1}, list[int]()
    try:
        torch.set_num_threads(2)
        first = simulate(
            "digits",
            chosen,
            runs_dir=tmp_path,
            subscribers=[lambda event: cores.append(torch.get_num_threads())],
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert set(cores) == {1}
    assert public_model(first) == public_model(simulate("digits", chosen, runs_dir=tmp_path))
