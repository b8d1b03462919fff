"""Long jobs as a person sees them: progress bars with time left, and a way back after Ctrl-C."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors import SafetensorError

from ..blocks.build import metric_of
from ..client.data.findings import Findings
from ..errors import RunError
from ..experiments.baselines.rules import Baseline
from ..experiments.baselines.running import run_in_one_place
from ..experiments.simulation.controls import CONTROLS, prepare_control
from ..experiments.simulation.diagnosing import diagnose_run
from ..experiments.simulation.preparation import new_run, prepare, read_inputs
from ..experiments.simulation.pretraining import pretrain
from ..experiments.simulation.reference import prepare_reference
from ..experiments.simulation.simulate import simulate
from ..experiments.simulation.threads import one_core
from ..experiments.tracking import tracked
from ..server.events import Event, RoundFinished, RunFinished, RunStarted, Subscriber
from ..server.run_folder import RunFolder
from ..server.run_lock import exclusive
from ..settings import Engine, RunSettings, SimulationSettings, Transport
from .failures import is_full

if TYPE_CHECKING:
    from ..threat_model.audit_file import Audit
    from ..threat_model.auditing import AuditDesign


@contextmanager
def progress_on(console: Console) -> Iterator[Progress]:
    """Bars on a terminal; on anything else only their last state."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


def _say(console: Console, side: str, findings: Findings) -> None:
    """What was done to the data, or looks odd in them."""
    for note in findings.notes:
        console.print(f"[yellow]{side} data:[/] {escape(note)}", highlight=False, soft_wrap=True)


@one_core()
def prepare_with_progress(settings: SimulationSettings, runs: Path, console: Console) -> RunFolder:
    """Check the inputs, then prepare a new run under `runs`."""
    inputs = read_inputs(settings)
    for side, findings in inputs.findings.items():
        _say(console, side, findings)
    with progress_on(console) as progress:
        task = progress.add_task(
            "Public pretraining", total=settings.pretraining.total_steps(settings.model.blocks), note=""
        )
        return prepare(
            settings,
            new_run(runs, settings),
            inputs=inputs,
            on_step=lambda s: progress.update(task, completed=s),
        )


@one_core()
def pretrain_with_progress(
    settings: RunSettings, folder: Path, console: Console, *, block: int | None, processes: int
) -> dict[str, Any]:
    """Train blocks of a model folder; interrupted, the same call goes on where it stopped."""
    tasks: dict[int, TaskID] = {}
    try:
        with progress_on(console) as progress:

            def on_step(b: int, step: int) -> None:
                if b not in tasks:
                    tasks[b] = progress.add_task(f"Block {b}", total=settings.pretraining.steps, note="")
                progress.update(tasks[b], completed=step)

            return pretrain(
                settings, folder, block=block, processes=processes, on_step=on_step,
                on_data=lambda findings: _say(console, "public", findings),
            )  # fmt: skip
    except KeyboardInterrupt:
        console.print("Interrupted; the same command goes on from the last checkpoint.")
        raise


@one_core()
def continue_with_progress(
    run: RunFolder,
    console: Console,
    *,
    with_reference: bool,
    with_controls: bool,
    transport: Transport = "grid",
    engine: Engine = "threads",
    workers: int | None = None,
    track: Sequence[str] = (),
) -> dict[str, Any]:
    """Run to the end from wherever the run stands; with its noise-free twin and its controls if asked for.

    `track`: names of trackers, of the run itself alone.
    """
    metric = metric_of(run.settings().model).name
    try:
        with exclusive(run.path), progress_on(console) as progress:
            with tracked(run, track) as subscribers:
                result = _simulate(
                    run,
                    progress,
                    "Private rounds",
                    subscribers,
                    transport=transport,
                    engine=engine,
                    workers=workers,
                )
            if with_reference:
                plain = _simulate(prepare_reference(run), progress, "Reference without noise")
                result[f"{metric}_non_private"] = plain[metric]
            for control in CONTROLS if with_controls else ():
                task = progress.add_task(f"Control {control}, public", total=None, note="")
                twin = prepare_control(run, control, lambda s, t=task: progress.update(t, completed=s))  # type: ignore[misc]
                progress.update(task, total=1, completed=1)
                result[f"{metric}_{control}"] = _simulate(twin, progress, f"Control {control}")[metric]
            run.write_json("result.json", result)
            if result["rounds_done"]:
                diagnose_run(run)
            return result
    except KeyboardInterrupt:
        resume = f"fedblocks simulate --resume {shlex.quote(str(run.path))}"
        console.print(f"Interrupted; nothing is lost. Go on with: {escape(resume)}")
        raise
    except (OSError, SafetensorError) as error:
        if not is_full(error):
            raise
        resume = f"nothing is lost: make room, then fedblocks simulate --resume {shlex.quote(str(run.path))}"
        raise RunError(f"{run.path}: no space left; {resume}") from None


def _simulate(
    run: RunFolder,
    progress: Progress,
    title: str,
    subscribers: Sequence[Subscriber] = (),
    **where: Any,
) -> dict[str, Any]:
    """`where`: transport, engine and workers, as `simulate` takes them."""
    return simulate(run, [_shown(run, progress, title), *subscribers], **where)


def _shown(run: RunFolder, progress: Progress, title: str) -> Subscriber:
    settings = run.settings()
    metric = metric_of(settings.model)
    task = progress.add_task(title, total=settings.training.rounds, note="")

    def show(event: Event) -> None:
        if isinstance(event, RunStarted):
            progress.update(task, completed=event.done)
        if isinstance(event, RoundFinished):
            quality = event.row.get("quality", {}).get("heldout")
            note = f"{metric.name} {quality[-1]:.4g}" if quality else ""
            progress.update(task, completed=event.round, note=note)
        if isinstance(event, RunFinished):
            progress.update(task, completed=event.rounds)

    return show


@one_core()
def baseline_with_progress(
    run: RunFolder, console: Console, *, baseline: Baseline, track: Sequence[str] = ()
) -> dict[str, Any]:
    """Train a prepared run in one place, all companies' examples together or each company's own."""
    try:
        with progress_on(console) as progress, tracked(run, track) as subscribers:
            shown = _shown(run, progress, f"Baseline {baseline}")
            return run_in_one_place(run, baseline, [shown, *subscribers])
    except KeyboardInterrupt:
        console.print("Interrupted; the same command begins anew.")
        raise


def audit_with_progress(run: RunFolder, design: AuditDesign, console: Console) -> Audit:
    """Audit a run; interrupted, the same command goes on with the attacks that have not finished."""
    from ..threat_model.auditing import audit_run

    try:
        with exclusive(run.path), progress_on(console) as progress:
            task: TaskID = progress.add_task("Audit", total=1000, note="")
            return audit_run(
                run,
                design,
                on_progress=lambda share, note: progress.update(
                    task, completed=round(1000 * share), note=escape(note)
                ),
            )
    except KeyboardInterrupt:
        console.print("Interrupted; nothing is lost: the same command goes on with what is left.")
        raise
