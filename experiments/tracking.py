"""A run's figures in TensorBoard or MLflow: subscribers of its events, which write files on this machine and no more.

    run = prepare(settings, folder)
    with tracked(run, ["tensorboard", "mlflow"]) as subscribers:
        simulate(run, subscribers)

    tensorboard --logdir runs                                   # RUN/tensorboard
    mlflow ui --backend-store-uri sqlite:///runs/mlflow.db      # beside the run's folder, for all runs there

They need `fedblocks[trackers]`. A tracker is told of the settings once, and of each round what its line of metrics
has: the family's metric on each set of examples, seconds, the norm of the updates, companies summed and absent. A
resumed run goes on in the same place.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from filelock import FileLock

from ..blocks import metric_of
from ..errors import InputError
from ..server.events import Event, RoundFinished, Subscriber
from ..server.run_folder import RunFolder
from .loaded_run import of_round

_RUN_ID = "mlflow-run.json"
_WAIT = 600.0  # seconds


class Tracker(Protocol):
    """Where figures go. What is told of a step that was told of before replaces it, or stands beside it."""

    def settings(self, values: Mapping[str, str]) -> None: ...

    def figures(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `tensorboard/` of the run."""

    def __init__(self, run: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        done = len(run.metrics())  # what a crash has left of further rounds is hidden
        self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=done or None)

    def settings(self, values: Mapping[str, str]) -> None:
        rows = "\n".join(f"| {name} | `{value}` |" for name, value in values.items())
        self._writer.add_text("settings", f"| field | value |\n|---|---|\n{rows}", 0)

    def figures(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run in `mlflow.db`, an SQLite file beside the run's folder; its id is kept in the folder.

    One process at a time writes: cells of a sweep have one file.
    """

    def __init__(self, run: RunFolder) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        folder, name = run.path.parent, run.settings().name
        self._lock = FileLock(folder / "mlflow.lock", timeout=_WAIT)
        with self._lock:
            self._client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
            kept = run.read_json(_RUN_ID)
            self._new = kept is None
            if kept is None:
                found = self._client.get_experiment_by_name(name)
                artifacts = (folder / "mlflow-artifacts").as_uri()
                place = found.experiment_id if found else self._client.create_experiment(name, artifacts)
                made = self._client.create_run(place, run_name=run.path.name)
                kept = {"id": made.info.run_id}
                run.write_json(_RUN_ID, kept)
        self._id = str(kept["id"])

    def settings(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        if self._new:  # they cannot be changed
            with self._lock:
                self._client.log_batch(self._id, params=[Param(name, text) for name, text in values.items()])

    def figures(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        with self._lock:
            told = [Metric(name, value, now, step) for name, value in values.items()]
            self._client.log_batch(self._id, metrics=told)

    def close(self) -> None:
        with self._lock:
            self._client.set_terminated(self._id)


TRACKERS: dict[str, Callable[[RunFolder], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


def check_trackers(names: Sequence[str]) -> None:
    """Raises: InputError for a tracker that is unknown."""
    for name in names:
        if name not in TRACKERS:
            raise InputError("--track", name, f"expected one of {', '.join(TRACKERS)}")


@contextmanager
def tracked(run: RunFolder, names: Sequence[str]) -> Iterator[list[Subscriber]]:
    """A subscriber for each of the trackers, closed in the end. Raises: InputError for one that is unknown."""
    check_trackers(names)
    with ExitStack() as opened:
        found = []
        for name in names:
            tracker = TRACKERS[name](run)
            opened.callback(tracker.close)
            tracker.settings(_flat(run.settings().model_dump(mode="json")))
            found.append(_subscriber(run, tracker))
        yield found


def _subscriber(run: RunFolder, tracker: Tracker) -> Subscriber:
    metric = metric_of(run.plan().model).name

    def tell(event: Event) -> None:
        if isinstance(event, RoundFinished):
            row = of_round(event.row, metric)
            figures = {
                name: float(v) for name, v in row.items() if isinstance(v, int | float) and name != "round"
            }
            tracker.figures(figures, event.round)

    return tell


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = "none" if value is None else str(value)
    return found
