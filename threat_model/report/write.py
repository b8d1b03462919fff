"""Fills the templates and writes the page into the run folder.

Values from outside (names of companies, settings, codes) are escaped: autoescape is on for every template, and only
figures of this package are markup.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ... import __version__, atomic_file
from ...privacy.accounting import round_up
from ...privacy.events import EpochGaussian, GaussianSteps
from ...server.run_folder import RunFolder
from ..adversaries import ADVERSARIES
from ..sentences import figure
from . import figures
from .adapted import alignment
from .assemble import assemble
from .audit_figures import shares, success_by_attack
from .audit_rows import collapsed_rows, statement_rows
from .audited import Audited, read_audit
from .block_figures import block_answers, loss_by_noise
from .costs import megabytes
from .diagnosed import Diagnosed, read_diagnosed
from .document import Report
from .facts import Facts, Point, read_facts
from .findings import find
from .frontier import Drawn
from .judgement import plain
from .labels import labelled
from .leakage import by_adversary
from .measures import Measure, model_words, share_interval, three_digits
from .quality_figures import quality_by_block, quality_by_round
from .roc_figure import membership_roc, strongest

_HERE = Path(__file__).parent
_MOST_ROUNDS = 20  # of the table by round
_SIGNED = 5
_OVER = "--over privacy.epsilon=1,3,8,none --seeds 3 --audit"
_MOST_ALARMS = 6  # failures of an audit before the others are folded away
_MOST_PICTURES = 6  # of a gallery before the others are folded away
_MOST_GROUPS = 10  # companies or classes before the others are folded away


@dataclass(frozen=True)
class Written:
    """A run's report in both forms, made of the same numbers."""

    report: Report
    page: str


def write_report(run: RunFolder) -> Path:
    """Write `report.html` into the run folder; the same files give the same page, byte for byte."""
    return write_both(run)[0]


def write_both(run: RunFolder, frontier: Drawn | None = None) -> tuple[Path, Report]:
    """As `write_report`; with the same as data. `frontier`: of the sweep that the run is a cell of."""
    path, written = run.path / "report.html", render(run, frontier=frontier)
    atomic_file.write(path, written.page.encode())
    return path, written.report


def render(run: RunFolder, *, drawn: bool = True, frontier: Drawn | None = None) -> Written:
    """Both forms, without writing either; `drawn`: with figures, which take most of the time.

    Raises: RunError, LedgerError where a file of the run cannot be read.
    """
    facts = read_facts(run)
    # Both look at examples, which a real run does not have; such a file is of another folder.
    audit = None if facts.real else read_audit(run)
    diagnosed = None if facts.real else read_diagnosed(run, facts)
    report = assemble(run, facts, diagnosed, audit, frontier.data if frontier else None)
    pages = environment(facts.measure)
    pages.filters["by_answer"] = diagnosed.by_answer.show if diagnosed else facts.measure.show
    context = _context(facts, diagnosed, audit, report, drawn) | {"frontier": frontier}
    return Written(report, pages.get_template("report.html.j2").render(context))


def environment(m: Measure, *more: Path) -> Environment:
    """Of the templates here and in folders `more`, with everything that is shown by a filter."""
    found = Environment(
        loader=FileSystemLoader([_HERE, *more]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(
        quality=m.show,
        change=m.change,
        percent=_percent,
        digits=three_digits,
        epsilon=_epsilon,
        delta=plain,
        figure=figure,
        bytes=megabytes,
        head=_head,
        interval=lambda value, n: _interval(m, value, n),
        labelled=labelled,
    )
    return found


def style() -> Markup:
    """The sheet of every page."""
    return Markup((_HERE / "report.css").read_text("utf-8"))


def _context(
    facts: Facts, diagnosed: Diagnosed | None, audit: Audited | None, report: Report, drawn: bool
) -> dict[str, Any]:
    epsilon = math.inf if report.promise.epsilon is None else report.promise.epsilon
    folder = shlex.quote(facts.folder)
    context: dict[str, Any] = {
        "version": __version__,
        "css": style(),
        "r": report,
        "facts": facts,
        "measure": facts.measure,
        "model_words": model_words(facts.plan.model),
        "diagnosed": diagnosed,
        "audit": audit,
        "findings": find(facts, diagnosed),
        "parts": {section.anchor: section for section in report.sections},
        "unfolded": _unfolded(report),
        "adversaries": list(ADVERSARIES.values()),
        "signed": _signed(report),
        "charts": {
            name: draw() if drawn else "" for name, draw in _charts(facts, diagnosed, audit, report).items()
        },
        "companies": report.companies,
        "factor": _factor(epsilon),
        "weaker": any(a.epsilon_against_company != a.epsilon for a in report.accounts),
        "blocks": sorted({block for s in facts.spending for block in s.by_block}),
        "by_block": _by_block(facts),
        "earlier": sum(s.other_releases for s in facts.spending),
        "losing": dict(facts.utility.losing_blocks()) if facts.utility else {},
        "by_round": _spread(facts.utility.points) if facts.utility else (),
        "settings": list(_flat(report.settings)),
        "most_alarms": _MOST_ALARMS,
        "most_pictures": _MOST_PICTURES,
        "most_rows": figures.MOST_ROWS,
        "most_groups": _MOST_GROUPS,
        "audit_command": f"fedblocks audit {folder}",
        "sweep_command": f"fedblocks sweep {folder}/settings.toml {_OVER}",
        "report_command": f"fedblocks report {folder}",
        "leakage": (),
        "alarms": (),
        "rows": (),
        "repeated": 0,
        "statements": (),
        "best_curves": (),
    }
    if audit is not None:
        rows, repeated = collapsed_rows(audit.audit.results)
        context |= {
            "best_curves": [curve.roc() for curve in strongest(audit.stored.curves)],
            "leakage": by_adversary(audit.audit.results, audit.audit.blocks),
            "alarms": audit.failed(),
            "rows": rows,
            "repeated": repeated,
            "statements": statement_rows(audit.audit.results),
        }
    return context


def _unfolded(report: Report) -> set[str]:
    """Sections that are open when the page is."""
    return {section.anchor for section in report.sections if section.attention}


def _signed(report: Report) -> list[Any]:
    """What a signature is for: the digests that the first page has room for."""
    wanted = ("plan", "metrics.jsonl", "audit.json", "last rows", "model")
    return [d for d in report.digests if d.of.startswith(wanted)][:_SIGNED]


def _by_block(facts: Facts) -> list[tuple[tuple[str, ...], dict[str, tuple[int, float]]]]:
    """Companies of which all is the same share a row."""
    rows: dict[tuple[object, ...], tuple[list[str], dict[str, tuple[int, float]]]] = {}
    for s in facts.spending:
        rows.setdefault(tuple(s.by_block.items()), ([], s.by_block))[0].append(s.company)
    return [(tuple(names), values) for names, values in rows.values() if values]


def _spread(points: tuple[Point, ...]) -> list[Point]:
    """At most so many, at even distances, always with the first and the last."""
    if len(points) <= _MOST_ROUNDS:
        return list(points)
    step = (len(points) - 1) / (_MOST_ROUNDS - 1)
    return [points[round(i * step)] for i in range(_MOST_ROUNDS)]


def _charts(
    facts: Facts, diagnosed: Diagnosed | None, audit: Audited | None, report: Report
) -> dict[str, Callable[[], Markup]]:
    """Those that this run has, each as what draws it."""
    charts: dict[str, Callable[[], Markup]] = {}
    if (utility := facts.utility) is not None:
        charts["quality"] = lambda: quality_by_round(utility, facts.aborted)
        charts["blocks"] = lambda: quality_by_block(utility)
    if diagnosed is not None:
        charts["answers"] = lambda: block_answers(diagnosed)
        charts["noise"] = lambda: loss_by_noise(diagnosed)
    if (kept := report.representation) is not None:
        charts["alignment"] = lambda: alignment(kept)
    if facts.spending and all(math.isfinite(s.spent) for s in facts.spending):
        charts["epsilon"] = lambda: figures.epsilon_by_company(facts.spending)
    if facts.absences or facts.aborted:
        charts["absences"] = lambda: figures.absences(facts)
    if audit is not None and (rows := shares(audit.groups)):
        charts["success"] = lambda: success_by_attack(rows)
    if audit is not None and (curves := audit.stored.curves):
        charts["roc"] = lambda: membership_roc(curves, _certain_mu(facts))
    return charts


def _certain_mu(facts: Facts) -> float | None:
    """mu of one release for an example that is taken for sure; none where the noise is not Gaussian."""
    for s in facts.spending:
        for event in s.events[:1]:
            if isinstance(event, GaussianSteps | EpochGaussian):
                return math.sqrt(event.steps) / event.noise_multiplier
    return None


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", "none" if value is None else str(value)))
    return rows


def _interval(m: Measure, value: float, examples: int) -> str:
    if not m.is_share or not examples:
        return "–"
    low, high = share_interval(value, examples)
    return f"{m.show(low)} to {m.show(high)}"


def _head(text: str) -> str:
    """As a sentence begins; a Greek letter is a symbol, which stays."""
    return text[:1].upper() + text[1:] if text[:1].isascii() else text


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _factor(epsilon: float) -> str:
    if epsilon > 30:
        return "a number beyond use"
    return f"{math.exp(epsilon):,.0f}" if epsilon > 3 else f"{math.exp(epsilon):.3g}"


def _epsilon(value: float) -> str:
    """Rounded up, so that the shown epsilon is never below the one spent."""
    return f"{round_up(value):g}" if math.isfinite(value) else "unbounded"
