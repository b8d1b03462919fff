"""One cell, in this process: the run with its audit, or a baseline; it ends as a row of the table."""

from __future__ import annotations

import contextlib
import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ... import __version__
from ...blocks import digest
from ...blocks.build import metric_of
from ...blocks.examples import Examples
from ...errors import RunError
from ...server.checkpoint import Checkpoint
from ...server.events import Event, RoundFinished, RunStarted
from ...server.run_folder import RunFolder
from ...settings import read_simulation
from ...threat_model.audit_file import Audit, read_audit_file
from ...threat_model.auditing import AuditDesign, audit_run
from ..baselines.judged import by_company, fits_few, quality_of
from ..baselines.one_place import Where, public_model, trained_in_one_place
from ..simulation.preparation import make_plan
from ..simulation.simulate import simulate
from ..simulation.threads import one_core
from ..tracking import tracked
from .grid import Cell
from .shared import prepare_from
from .strongest import strongest
from .table import Row

OnShare = Callable[[float], None]
_AUDIT_SHARE = 0.5  # of an audited cell's time, for its progress


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where a cell finds what it starts from, and leaves its run."""

    started: Path
    run: Path


@one_core()
def run_cell(
    cell: Cell,
    folders: Folders,
    *,
    audit: bool,
    track: Sequence[str] = (),
    on_share: OnShare = lambda share: None,
) -> Row:
    """Run the cell, or go on where an interrupted process stopped; returns its row.

    Raises: what stops a run; see `errors`.
    """
    began, cpu = time.perf_counter(), time.process_time()
    started = RunFolder.existing(folders.started)
    row = Row(
        cell=cell.name, kind=cell.kind, seed=cell.settings.seed, axes=cell.axes, status="done", digest=cell.digest,
        epsilon=cell.settings.privacy.epsilon, metric=metric_of(cell.settings.model).name, version=__version__,
    )  # fmt: skip
    if cell.kind == "run":
        row = _federated(row, cell, started, folders.run, audit, track, on_share)
    else:
        row = _in_one_place(row, cell, started, on_share)
    if row.quality is None or not math.isfinite(row.quality):
        raise RunError(f"{row.metric} is {row.quality} after the last round: the training has diverged")
    return replace(
        row,
        seconds=round(time.perf_counter() - began, 2),
        cpu_seconds=round(time.process_time() - cpu, 2),
        peak_mib=_peak_mib(),
    )


def _peak_mib() -> float | None:
    """Of this process. (getrusage knows of the process from which this one was started too.)"""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text("ascii"), re.MULTILINE)
    except OSError:
        found = None
    return None if found is None else round(int(found[1]) / 1024, 1)


def _federated(
    row: Row,
    cell: Cell,
    started: RunFolder,
    folder: Path,
    audit: bool,
    track: Sequence[str],
    on_share: OnShare,
) -> Row:
    run = (
        RunFolder(folder)
        if (folder / "plan.json").is_file()
        else prepare_from(started, cell.settings, folder)
    )
    if read_simulation(run.path) != cell.settings:
        raise RunError(f"{run.path}: of other settings; move it away")
    whole, rounds = 1 - _AUDIT_SHARE * audit, cell.settings.training.rounds

    def show(event: Event) -> None:
        if isinstance(event, RunStarted):
            on_share(whole * event.done / rounds)
        if isinstance(event, RoundFinished):
            on_share(whole * event.round / rounds)

    with tracked(run, track) as subscribers:
        result = simulate(run, [show, *subscribers])
    if result["rounds_done"] == 0:
        raise RunError(f"every round failed: {result['rounds_failed']}")
    found = _audited(run, lambda share: on_share(whole + _AUDIT_SHARE * share)) if audit else None
    return row_of(row, run, result, found)


def row_of(row: Row, run: RunFolder, result: dict[str, Any], audit: Audit | None) -> Row:
    """The row of a run that is over; every figure is read from the run's own files."""
    metric, spent = result["metric"], list(result["epsilon"].values())
    model = Checkpoint.load(run.checkpoints).model
    return replace(
        row,
        # None stands for a ledger with a release without noise.
        epsilon_spent=None if None in spent or not spent else max(spent),
        epsilon_against_company=result.get("epsilon_against_a_company"),
        delta=result.get("delta"),
        noise_multiplier=result["noise_multiplier"],
        quality=result[metric],
        by_company=by_company(run),
        by_company_public=by_company(run, 0),
        quality_public_model=result[f"{metric}_public_model"],
        quality_on_public_data=result[f"{metric}_on_public_data"],
        rounds_done=result["rounds_done"],
        audit="" if audit is None else audit.verdict.ending,
        attacks=[] if audit is None else strongest(audit.results),
        plan_digest=run.plan().digest().hex(),
        model_digest=digest(model.shared, *model.blocks).hex(),
    )


def _audited(run: RunFolder, on_share: OnShare) -> Audit:
    with contextlib.suppress(RunError):  # of another version: made again
        found = read_audit_file(run)
        if found is not None:
            return found
    settings = read_simulation(run.path).audit
    design = AuditDesign(minutes=settings.minutes, block=settings.block, workers=1)
    return audit_run(run, design, on_progress=lambda share, note: on_share(share))


def _in_one_place(row: Row, cell: Cell, started: RunFolder, on_share: OnShare) -> Row:
    """All companies' examples together, or each company's own, without noise; judged as the run is.

    `by_company`: of the pooled model, or of each company's own, on what that company held out.
    """
    heldout, seed = Examples.load(started.evaluation / "heldout.npz"), cell.settings.seed
    device, names = cell.settings.device, [home.name for home in started.homes()]
    plan = make_plan(cell.settings, public_model(started), cell.name)
    where: Where = "pooled" if cell.kind == "pooled" else "alone"
    parts = 1 if where == "pooled" else len(names)
    found: list[float] = []
    by_name: dict[str, float] = {}
    on_share(0)
    for trained in trained_in_one_place(started, plan, where, seed=seed, device=device):
        found.append(quality_of(trained.model, heldout, seed))
        for name in trained.companies if fits_few(started) else ():
            own = Examples.load(started.own_heldout / f"{name}.npz")
            by_name[name] = quality_of(trained.model, own, seed)
        on_share(len(found) / parts)
    return replace(
        row,
        quality=statistics.fmean(found),
        quality_public_model=quality_of(public_model(started).to(device), heldout, seed),
        by_company=by_name,
        by_company_public=by_company(started, 0),
        rounds_done=plan.training.rounds,
    )
