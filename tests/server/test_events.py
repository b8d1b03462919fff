"""A run tells its subscribers what happened, and none of them can harm it."""

from __future__ import annotations

import json
import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from fedblocks.blocks import digest
from fedblocks.cli import progress as bars
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.events import Event, RoundFinished, RunFinished, RunStarted
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings

ROUNDS = 2
SHOWN: list[tuple[str, int]] = [("start", 0), ("round", 0), ("round", 1), ("round", 2), ("end", 2)]


def short(event: Event) -> tuple[str, int]:
    if isinstance(event, RunStarted):
        assert event.to_go == event.rounds - event.done
        return "start", event.done
    return ("round", event.round) if isinstance(event, RoundFinished) else ("end", event.rounds)


@pytest.fixture(scope="module")
def prepared(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    training = small.training.model_copy(update={"rounds": ROUNDS})
    return prepare(small.model_copy(update={"training": training}), tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def run(prepared: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(prepared.path, tmp_path / "run")))


@pytest.fixture(scope="module")
def whole(prepared: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same run, which nobody listened to."""
    run = RunFolder(Path(shutil.copytree(prepared.path, tmp_path_factory.mktemp("whole") / "run")))
    simulate(run)
    return run


def as_written(event: RoundFinished) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(json.dumps(event.row))
    return row


def bits(run: RunFolder) -> bytes:
    model = Checkpoint.load(run.checkpoints, ROUNDS).model
    return digest(model.shared, *model.blocks)


def metrics(run: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.metrics()]


def test_every_subscriber_is_told_in_order_of_what_is_on_the_disk(run: RunFolder, whole: RunFolder) -> None:
    """Would catch an event before its checkpoint, one that is lost, and subscribers that change a run."""
    told: list[tuple[int, Event]] = []

    def look(event: Event) -> None:
        if isinstance(event, RoundFinished):
            assert run.metrics()[-1] == as_written(event)
            assert Checkpoint.load(run.checkpoints).round == event.round

    simulate(run, [look, lambda event: told.append((1, event)), lambda event: told.append((2, event))])
    assert [place for place, _ in told] == [1, 2] * len(SHOWN)
    assert told[::2] == [(1, event) for _, event in told[1::2]]
    assert [short(event) for _, event in told[::2]] == SHOWN
    assert [as_written(event) for _, event in told[::2] if isinstance(event, RoundFinished)] == run.metrics()
    assert bits(run) == bits(whole)


@pytest.mark.parametrize(
    ("error", "place"), [*((KeyboardInterrupt, place) for place in range(len(SHOWN))), (ValueError, 2)]
)
def test_a_subscriber_that_raises_ends_the_run_which_can_be_resumed(
    run: RunFolder, whole: RunFolder, place: int, error: type[BaseException]
) -> None:
    """Would catch a round that is lost, done twice or told twice, and an error that is swallowed."""
    before: list[Event] = []
    behind: list[Event] = []
    after: list[Event] = []

    def harm(event: Event) -> None:
        if short(event) == SHOWN[place]:
            raise error

    with pytest.raises(error):
        simulate(run, [before.append, harm, behind.append])
    assert list(map(short, before)) == SHOWN[: place + 1]
    assert list(map(short, behind)) == SHOWN[:place]
    done = Checkpoint.load(run.checkpoints).round
    simulate(run, [after.append])
    assert list(map(short, after)) == [("start", done), *SHOWN[max(1, place + 1) : -1], SHOWN[-1]]
    assert bits(run) == bits(whole)
    assert metrics(run) == metrics(whole)
    spent = [r.read_json("result.json") for r in (run, whole)]
    assert spent[0] is not None
    assert spent[1] is not None
    assert spent[0]["epsilon"] == spent[1]["epsilon"]


def test_events_cannot_be_changed() -> None:
    for event in (RunStarted(2, 0), RoundFinished({"round": 1}), RunFinished(2)):
        with pytest.raises(FrozenInstanceError):
            event.rounds = 7  # type: ignore[misc, union-attr]


def test_the_bar_of_a_resumed_run_starts_where_the_run_stands(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a bar at 0 while a run goes on, and one that does not end."""
    seen: list[tuple[float, float | None]] = []

    def stop(event: Event) -> None:
        if short(event) == ("round", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(run, [stop])

    def watched(run: RunFolder, subscribers: Any, **options: Any) -> dict[str, Any]:
        def look(event: Event) -> None:
            (task,) = progress.tasks
            seen.append((task.completed, task.total))

        return simulate(run, [*subscribers, look], **options)

    monkeypatch.setattr(bars, "simulate", watched)
    with Progress(console=Console(quiet=True)) as progress:
        bars._simulate(run, progress, "Rounds")
        assert progress.finished
    assert seen == [(1, 2), (2, 2), (2, 2)]
