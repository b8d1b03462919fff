"""Trackers are told what a run's own metrics say, into files; and a run without them needs none of their packages."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedblocks.cli.failures import failure_of
from fedblocks.cli.main import app
from fedblocks.errors import InputError
from fedblocks.experiments import tracking
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.server.events import Event, RoundFinished
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings


class Kept:
    """A tracker that keeps what it is told."""

    def __init__(self, run: RunFolder) -> None:
        self.told: dict[int, Mapping[str, float]] = {}
        self.fields: Mapping[str, str] = {}
        self.closed = False
        self.run = run

    def settings(self, values: Mapping[str, str]) -> None:
        self.fields = values

    def figures(self, values: Mapping[str, float], step: int) -> None:
        assert step not in self.told
        self.told[step] = values

    def close(self) -> None:
        self.closed = True


def expected(run: RunFolder) -> list[float]:
    return [row["quality"]["heldout"][-1] for row in run.metrics()]


def test_a_tracker_hears_every_round_once_over_an_interruption_and_is_closed(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch rounds that are lost or told twice, figures that are not those of metrics.jsonl, or a tracker that
    is left open when a run is interrupted."""
    kept: list[Kept] = []

    def made(run: RunFolder) -> Kept:
        kept.append(Kept(run))
        return kept[-1]

    def interrupt(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round == 2:
            raise KeyboardInterrupt

    monkeypatch.setitem(tracking.TRACKERS, "kept", made)
    run = prepare(small, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), tracking.tracked(run, ["kept"]) as subscribers:
        simulate(run, [*subscribers, interrupt])
    with tracking.tracked(run, ["kept"]) as subscribers:
        simulate(run, subscribers)
    assert [each.closed for each in kept] == [True, True]
    assert [list(each.told) for each in kept] == [[0, 1, 2], [3, 4]]
    told = kept[0].told | kept[1].told
    assert [told[step]["accuracy_heldout"] for step in range(5)] == expected(run)
    assert told[4]["companies"] == 5
    assert kept[0].fields["privacy.epsilon"] == "8.0"


def test_an_unknown_tracker_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Would catch a run that is prepared, or a sweep that begins, for a name that was mistyped."""
    for words in (["simulate", "digits"], ["sweep", "digits", "--seeds", "2"]):
        done = CliRunner().invoke(
            app, [*words, "--track", "tensorbord", "--runs-dir", str(tmp_path / "runs")]
        )
        assert isinstance(done.exception, InputError), done.output
        assert "expected one of tensorboard, mlflow" in str(done.exception)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_package_that_is_missing_is_named_with_its_extra(
    name: str, small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a traceback where one line tells what to install."""
    if find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    run = prepare(small, tmp_path / "run")
    with pytest.raises(ModuleNotFoundError) as found, tracking.tracked(run, [name]):
        pass
    failure = failure_of(found.value)
    assert failure is not None
    assert "fedblocks[trackers]" in failure.text


def test_tensorboard_reads_what_was_told(small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch event files that TensorBoard itself does not read."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = prepare(small, tmp_path / "run")
    with tracking.tracked(run, ["tensorboard"]) as subscribers:
        simulate(run, subscribers)
    found = reading.EventAccumulator(str(run.path / "tensorboard"))
    found.Reload()
    told = [(event.step, event.value) for event in found.Scalars("accuracy_heldout")]
    assert told == [(step, pytest.approx(value)) for step, value in enumerate(expected(run))]


def test_mlflow_reads_what_was_told_of_two_runs_in_one_file(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch runs that overwrite each other, and a resumed one that becomes another."""
    reading = pytest.importorskip("mlflow.tracking")
    client = reading.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for name in ("first", "second"):
        run = prepare(small, tmp_path / name)
        for _ in range(2):  # the second time there is no round left
            with tracking.tracked(run, ["mlflow"]) as subscribers:
                simulate(run, subscribers)
        kept = run.read_json("mlflow-run.json")
        assert kept is not None
        told = [(m.step, m.value) for m in client.get_metric_history(kept["id"], "accuracy_heldout")]
        assert sorted(told) == list(enumerate(expected(run)))
        assert client.get_run(kept["id"]).data.params["privacy.epsilon"] == "8.0"
    [experiment] = [e for e in client.search_experiments() if e.name == small.name]
    assert len(client.search_runs([experiment.experiment_id])) == 2
