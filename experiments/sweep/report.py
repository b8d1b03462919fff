"""`fedblocks report SWEEP`: one page with what the cells have in common, each cell's verdict, and the frontier.

A cell is judged by its own files, as its own report judges it, and the sweep's table is compared with them.
"""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__, atomic_file
from ...errors import FedblocksError
from ...server.run_folder import RunFolder
from ...threat_model.report.assemble import Judged, judge
from ...threat_model.report.audited import read_audit
from ...threat_model.report.check import Checked, check_page, written_page
from ...threat_model.report.document import CrossCheck, Digest
from ...threat_model.report.facts import Facts, read_facts
from ...threat_model.report.judgement import plain
from ...threat_model.report.measures import Measure, model_words
from ...threat_model.report.write import environment, style
from .frontier import Frontier
from .grid import shown
from .page import command_of, drawn
from .points import WORDS
from .report_data import CellVerdict, Choice, Common, SweepReport
from .scheduler import ASKED
from .table import TABLE, Row

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class _Seen:
    """A run of the sweep as its files tell of it."""

    row: Row
    facts: Facts
    judged: Judged


def is_sweep(folder: Path) -> bool:
    return (folder / ASKED).is_file()


def write_sweep_report(folder: Path) -> tuple[Path, SweepReport]:
    """Write `report.html` into the sweep's folder. Raises: FedblocksError where a file cannot be read."""
    report, page = render_sweep(folder)
    path = folder.resolve() / "report.html"
    atomic_file.write(path, page.encode())
    return path, report


def check_sweep_report(folder: Path) -> Checked:
    """Raises: RunError where no report was written; FedblocksError where a file cannot be read."""
    written = written_page(folder)
    report, page = render_sweep(folder, figure=False)
    return check_page(written, page, report.checks, folder.resolve())


def render_sweep(folder: Path, *, figure: bool = True) -> tuple[SweepReport, str]:
    """Both forms, without writing either. Raises: FedblocksError where a file cannot be read."""
    found = Frontier.of(folder)
    seen, lost = [], {}
    for row in found.cells:
        if row.kind != "run" or row.status == "failed":
            continue
        try:
            seen.append(_seen(row, folder))
        except FedblocksError as error:
            lost[row.cell] = str(error)
    shows = drawn(found, figure=figure)
    cells = _cells(found.cells, {each.row.digest: each for each in seen}, lost)
    report = SweepReport(
        version=__version__,
        sweep=folder.resolve().name,
        name=found.asked["name"],
        preset=found.asked["preset"],
        over=tuple(found.asked["over"]),
        seeds=found.asked["seeds"],
        common=_common([each.facts for each in seen], [each.judged for each in seen]),
        choice=_choice(cells, found.measure),
        cells=cells,
        frontier=shows.data,
        checks=tuple(check for each in seen for check in _checks(each)),
        digests=tuple(
            Digest(of=name, sha256=hashlib.sha256((folder / name).read_bytes()).hexdigest())
            for name in (TABLE, ASKED)
        ),
        commands=(
            command_of(found.asked),
            f"fedblocks report {shlex.quote(str(folder.resolve()))}",
            f"fedblocks report {shlex.quote(str(folder.resolve()))} --check",
        ),
    )
    context: dict[str, Any] = {
        "r": report,
        "css": style(),
        "version": __version__,
        "folder": str(folder.resolve()),
        "frontier": shows,
        "endings": {ending: sum(c.gate == ending for c in cells) for ending in ("passed", "open", "failed")},
        "runs": [c for c in cells if c.kind == "run"],
        "baselines": [c for c in cells if c.kind != "run"],
        "wrong": [c for c in report.checks if not c.agrees],
    }
    return report, environment(found.measure, _HERE).get_template("sweep.html.j2").render(context)


def _seen(row: Row, folder: Path) -> _Seen:
    run = RunFolder.existing(folder / "cells" / row.cell)
    facts = read_facts(run)
    return _Seen(row, facts, judge(run, facts, read_audit(run)))


def _cells(rows: Sequence[Row], seen: dict[str, _Seen], lost: dict[str, str]) -> tuple[CellVerdict, ...]:
    found = []
    for row in rows:
        judged = seen[row.digest].judged if row.digest in seen else None
        reasons = judged.verdict.reasons if judged else ()
        found.append(
            CellVerdict(
                cell=row.cell,
                kind=row.kind,
                setting=_setting(row),
                seed=row.seed,
                epsilon=row.epsilon,
                epsilon_spent=judged.promise.epsilon if judged else row.epsilon_spent,
                quality=row.quality,
                quality_public_model=row.quality_public_model,
                audit=row.audit,
                gate=judged.verdict.ending if judged else None,
                open_questions=tuple(reason.topic for reason in reasons if reason.good is not True),
                failure=lost.get(row.cell, row.reason),
            )
        )
    return tuple(found)


def _setting(row: Row) -> str:
    axes = ", ".join(f"{field} {shown(value)}" for field, value in row.axes.items())
    if row.kind == "run":
        return axes or "as the preset has it"
    return f"{WORDS[row.kind]}{', ' if axes else ''}{axes}"


def _common(facts: Sequence[Facts], judged: Sequence[Judged]) -> tuple[Common, ...]:
    """What every run says in the same words; what differs is the axes' business, or told by cell."""
    told: list[dict[str, str]] = []
    for each, own in zip(facts, judged, strict=True):
        plan, promise = each.plan, own.promise
        words = model_words(plan.model)
        told.append(
            {
                "model": f"{words.kind}, {words.data}, {plan.model.blocks} blocks",
                "data": f"public {each.settings.data.public.source}"
                + (f", private {each.simulation.data.private.source}" if each.simulation else ""),
                "companies": f"{each.settings.companies.count}",
                "rounds": f"{plan.training.rounds}, {plan.training.assignment}",
                "unit of privacy": f"{promise.unit}, of one company",
                "adjacency": promise.adjacency,
                "δ": plain(promise.delta),
                "holds against": promise.against,
                "opened": f"sums of at least {plan.secure_aggregation.minimum_cohort} companies",
            }
        )
    return tuple(
        Common(what=what, value=told[0][what])
        for what in (told[0] if told else ())
        if told[0][what] and len({each[what] for each in told}) == 1
    )


def _choice(cells: Sequence[CellVerdict], measure: Measure) -> Choice:
    by: dict[str, list[CellVerdict]] = {}
    for cell in cells:
        if cell.kind == "run":
            by.setdefault(cell.setting, []).append(cell)
    passing = {name: own for name, own in by.items() if all(cell.gate == "passed" for cell in own)}
    if not passing:
        text = "No setting has passed its gate with all of its runs: none can be chosen without a person."
        return Choice(setting=None, sentence=text)
    means = {
        name: sum(cell.quality for cell in own if cell.quality is not None) / len(own)
        for name, own in passing.items()
    }
    best = max(means, key=lambda name: measure.gain(0.0, means[name]))
    text = (
        f"Of the {len(passing)} setting{'' if len(passing) == 1 else 's'} of which every run passes its gate, "
        f"{best} has the best {measure.words}, {measure.show(means[best])}. Choosing by looking at private results "
        "is not part of any ε."
    )
    return Choice(setting=best, sentence=text)


def _checks(seen: _Seen) -> list[CrossCheck]:
    """What the cell's own files say otherwise of each other, and than the sweep's table."""
    row, facts = seen.row, seen.facts
    found = [check.model_copy(update={"what": f"{check.what} ({row.cell})"}) for check in seen.judged.checks]
    if facts.utility is not None and row.quality is not None:
        found.append(_number(row, "quality", facts.utility.last.judged[-1], row.quality))
    if row.epsilon_spent is not None and seen.judged.promise.epsilon is not None:
        found.append(_number(row, "ε spent", seen.judged.promise.epsilon, row.epsilon_spent))
    return found


def _number(row: Row, what: str, own: float, table: float) -> CrossCheck:
    same = math.isclose(own, table, rel_tol=1e-9, abs_tol=1e-12)
    return CrossCheck(
        what=f"{what} ({row.cell})",
        one=f"its own files: {own:.6g}",
        other=f"{TABLE}: {table:.6g}",
        agrees=same,
    )
