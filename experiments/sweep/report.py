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
from ...threat_model.report.document import CrossCheck, Digest, Section
from ...threat_model.report.facts import Facts, read_facts
from ...threat_model.report.judgement import plain
from ...threat_model.report.measures import Measure, model_words
from ...threat_model.report.write import environment, style
from .choice import choice_of
from .frontier import Frontier
from .grid import EPSILON, shown
from .page import command_of, drawn
from .points import WORDS
from .report_data import CellVerdict, Common, SweepReport
from .scheduler import ASKED
from .table import TABLE, Row

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class _Seen:
    """A run of the sweep as its files tell of it."""

    row: Row
    facts: Facts
    judged: Judged
    minutes: float | None  # of its audit


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
        choice=choice_of(
            cells, {row.cell: row for row in found.cells}, found.measure, folder.resolve(), _minutes(seen)
        ),
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
        "parts": _sections(report, found.measure),
        "unfolded": {"frontier"},
    }
    return report, environment(found.measure, _HERE).get_template("sweep.html.j2").render(context)


def _sections(r: SweepReport, measure: Measure) -> dict[str, Section]:
    """The page's sections, each with what it comes to in one line."""
    runs = [cell for cell in r.cells if cell.kind == "run"]
    gates = [(sum(c.gate == ending for c in runs), word) for ending, word in _ENDINGS]
    agree = sum(check.agrees for check in r.checks)
    beside = [
        f"{point.setting} {measure.show(point.quality)}"
        for point in r.frontier.points
        if point.kind in ("pooled", "alone", "public")
    ]
    told = {
        "frontier": (
            "Privacy against utility",
            f"{measure.title} ({measure.direction}); {'; '.join(beside)}.",
            False,
        ),
        "cells": (
            "Verdicts by cell",
            f"Of {len(runs)} runs {', '.join(f'{n} {word}' for n, word in gates if n)}.",
            any(c.gate is None for c in runs),
        ),
        "baselines": (
            "Baselines by cell",
            f"{len(r.cells) - len(runs)} models without noise to compare with.",
            False,
        ),
        "reproduce": (
            "Do the files agree, and how to reproduce",
            f"{agree} of {len(r.checks)} comparisons agree; the commands and digests.",
            agree < len(r.checks),
        ),
    }
    kept = [anchor for anchor in told if anchor != "baselines" or len(runs) < len(r.cells)]
    return {
        anchor: Section(
            anchor=anchor, number=i, name=told[anchor][0], finding=told[anchor][1], attention=told[anchor][2]
        )
        for i, anchor in enumerate(kept, start=1)
    }


_ENDINGS = (("passed", "passed"), ("open", "open"), ("failed", "failed"), (None, "without a result"))


def _seen(row: Row, folder: Path) -> _Seen:
    run = RunFolder.existing(folder / "cells" / row.cell)
    facts = read_facts(run)
    audit = read_audit(run)
    return _Seen(row, facts, judge(run, facts, audit), None if audit is None else audit.audit.minutes)


def _minutes(seen: Sequence[_Seen]) -> float | None:
    return max((each.minutes for each in seen if each.minutes is not None), default=None)


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
                failed_questions=tuple(reason.topic for reason in reasons if reason.good is False),
                cautions=tuple(reason.topic for reason in reasons if reason.caution),
                failure=lost.get(row.cell, row.reason),
            )
        )
    return tuple(found)


def _setting(row: Row) -> str:
    axes = ", ".join(_axis(field, value) for field, value in row.axes.items())
    if row.kind == "run":
        return axes or "as the preset has it"
    return f"{WORDS[row.kind]}{', ' if axes else ''}{axes}"


def _axis(field: str, value: Any) -> str:
    if field != EPSILON:
        return f"{field} {shown(value)}"
    return "no noise" if value is None else f"ε {shown(value)}"


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
