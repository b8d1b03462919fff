"""The Python interface, for notebooks and scripts: the jobs of the command line as functions.

from fedblocks import audit, load_run, simulate
run = simulate("digits", {"privacy.epsilon": 3.0, "training.rounds": 40})
run.read_json("result.json")["accuracy"]
audit(run, targets=4)["views"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..server.events import Subscriber
from ..server.run_folder import RunFolder
from ..server.run_lock import exclusive
from ..threat_model.auditing import audit_run
from .presets import load_settings
from .simulation.preparation import new_run, prepare
from .simulation.simulate import simulate as continue_run
from .simulation.threads import one_core


@one_core()
def simulate(
    preset: str | Path,
    overrides: Mapping[str, object] | None = None,
    *,
    runs_dir: str | Path = "runs",
    subscribers: Sequence[Subscriber] = (),
) -> RunFolder:
    """Simulate a multi-company run to its end; returns its folder, whose `result.json` is the summary.

    `preset`: a preset's name or a TOML file; `overrides`: {"privacy.epsilon": 3.0}, as `--set` on the command line;
    `subscribers` are called with each event (`server.events`); if one raises, the run ends there and can be resumed.

    Raises: InputError for settings or data that cannot be used, before anything is written; PrivacyError,
    ProtocolError or RunError for what stops the run. `load_run` and `resume` go on after an interruption.
    """
    settings = load_settings(str(preset), overrides or {})
    run = prepare(settings, new_run(Path(runs_dir), settings))
    continue_run(run, subscribers)
    return run


@one_core()
def resume(run: RunFolder, *, subscribers: Sequence[Subscriber] = ()) -> dict[str, Any]:
    """Go on with an interrupted run from its last checkpoint; returns its summary."""
    return continue_run(run, subscribers)


def load_run(path: str | Path) -> RunFolder:
    """A run that is there already: `settings()`, `plan()`, `metrics()`, `read_json("result.json")`.

    Raises: RunError for a folder that is none.
    """
    return RunFolder.existing(Path(path))


def audit(run: RunFolder, **budget: int) -> dict[str, Any]:
    """Attack what a run released; returns what `audit.json` holds then. `budget`: targets, aggregates, block.

    Raises: InputError for a family that no attack knows yet, or a budget out of range.
    """
    with exclusive(run.path):
        return audit_run(run, budget, on_progress=lambda done, note: None)
