"""The Python interface, for notebooks and scripts: the jobs of the command line as functions.

from fedblocks import audit, load_run, simulate
run = simulate("digits", {"privacy.epsilon": 3.0, "training.rounds": 40})
run.read_json("result.json")["accuracy"]
audit(run, minutes=2).verdict.ending
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..server.events import Subscriber
from ..server.run_folder import RunFolder
from ..server.run_lock import exclusive
from ..settings import read_simulation
from ..threat_model.audit_file import Audit
from ..threat_model.auditing import AuditDesign, audit_run
from ..threat_model.gate import Gate
from .loaded_run import Run
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
) -> Run:
    """Simulate a multi-company run to its end; returns its folder, whose `result.json` is the summary.

    `preset`: a preset's name or a TOML file; `overrides`: {"privacy.epsilon": 3.0}, as `--set` on the command line;
    `subscribers` are called with each event (`server.events`); if one raises, the run ends there and can be resumed.

    Raises: InputError for settings or data that cannot be used, before anything is written; PrivacyError,
    ProtocolError or RunError for what stops the run. `load_run` and `resume` go on after an interruption.
    """
    settings = load_settings(str(preset), overrides or {})
    run = prepare(settings, new_run(Path(runs_dir), settings))
    continue_run(run, subscribers)
    return Run(run.path)


@one_core()
def resume(run: RunFolder, *, subscribers: Sequence[Subscriber] = ()) -> dict[str, Any]:
    """Go on with an interrupted run from its last checkpoint; returns its summary."""
    return continue_run(run, subscribers)


def load_run(path: str | Path) -> Run:
    """A run that is there already: its settings, metrics, model, ledgers and audit (see `loaded_run.Run`).

    Raises: RunError for a folder that is none.
    """
    return Run(RunFolder.existing(Path(path)).path)


def audit(
    run: RunFolder,
    *,
    minutes: float | None = None,
    adversaries: Sequence[str] = (),
    block: int | None = None,
    gate: Gate | str | Path | None = None,
    seed: int = 0,
    workers: int = 2,
) -> Audit:
    """Attack what a run released; returns what `audit.json` holds then, `results` and `verdict` above all.

    `minutes` and `block`, where they are not given, are the run's own settings; `gate`: limits, or their TOML file.

    Raises: InputError for an unknown adversary or a number out of range.
    """
    limits = gate if isinstance(gate, Gate) else Gate() if gate is None else Gate.load(Path(gate))
    design = audit_design(
        run, minutes=minutes, adversaries=adversaries, block=block, gate=limits, seed=seed, workers=workers
    )
    with exclusive(run.path):
        return audit_run(run, design)


def audit_design(
    run: RunFolder,
    *,
    minutes: float | None,
    adversaries: Sequence[str],
    block: int | None,
    gate: Gate,
    seed: int,
    workers: int,
) -> AuditDesign:
    """What is asked of an audit; the run's own settings where nothing is given."""
    settings = read_simulation(run.path).audit
    return AuditDesign(
        minutes=settings.minutes if minutes is None else minutes,
        adversaries=tuple(adversaries),
        block=settings.block if block is None else block,
        gate=gate,
        seed=seed,
        workers=workers,
    )
