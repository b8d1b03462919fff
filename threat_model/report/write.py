"""Fills the templates and writes the page into the run folder.

Values from outside (names of companies, settings, codes) are escaped: autoescape is on for every template, and only
figures of this package are markup.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ... import __version__, atomic_file
from ...privacy.accounting import round_up
from ...server.run_folder import RunFolder
from ..sentences import figure
from . import figures
from .audit_figures import shares, success_by_attack
from .audited import Audited, read_audit
from .block_figures import block_answers, loss_by_noise
from .diagnosed import Diagnosed, read_diagnosed
from .facts import Facts, read_facts
from .findings import delta, find, largest_against_company, largest_epsilon
from .measures import model_words, three_digits
from .quality_figures import quality_by_block, quality_by_round

_HERE = Path(__file__).parent
_SECTIONS = (
    ("findings", "Findings"),
    ("utility", "Utility"),
    ("each-block", "What each block does"),
    ("privacy", "Privacy spent"),
    ("dropouts", "Who dropped out"),
    ("audit", "Audit"),
    ("limits", "Limits"),
    ("reproduce", "Reproduce"),
)


def write_report(run: RunFolder) -> Path:
    """Write `report.html` into the run folder; the same files give the same page, byte for byte."""
    facts = read_facts(run)
    # Both look at examples, which a real run does not have; such a file is of another folder.
    audit = None if facts.real else read_audit(run)
    diagnosed = None if facts.real else read_diagnosed(run, facts)
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    m = facts.measure
    environment.filters.update(
        quality=m.show,
        change=m.change,
        by_answer=diagnosed.by_answer.show if diagnosed else m.show,
        percent=_percent,
        digits=three_digits,
        epsilon=_epsilon,
        delta=delta,
        figure=figure,
    )
    page = environment.get_template("report.html.j2").render(_context(run, facts, diagnosed, audit))
    path = run.path / "report.html"
    atomic_file.write(path, page.encode())
    return path


def _context(
    run: RunFolder, facts: Facts, diagnosed: Diagnosed | None, audit: Audited | None
) -> dict[str, Any]:
    epsilon = largest_epsilon(facts)
    return {
        "version": __version__,
        "css": Markup((_HERE / "report.css").read_text("utf-8")),
        "facts": facts,
        "measure": facts.measure,
        "model_words": model_words(facts.plan.model),
        "diagnosed": diagnosed,
        "audit": audit,
        "findings": find(facts, diagnosed, audit),
        "sections": _SECTIONS,
        "charts": _charts(facts, diagnosed, audit),
        "companies": len(facts.took_part) or facts.settings.companies.count,
        "epsilon": epsilon,
        "against_company": largest_against_company(facts),
        "factor": _factor(epsilon),
        "ceilings": ", ".join(f"{c:g}" for c in sorted({s.ceiling for s in facts.spending})),
        "blocks": sorted({block for s in facts.spending for block in s.by_block}),
        "earlier": sum(s.other_releases for s in facts.spending),
        "losing": dict(facts.utility.losing_blocks()) if facts.utility else {},
        "simulated": not facts.real,
        "settings": list(_flat((facts.simulation or facts.settings).model_dump(mode="json"))),
        "most_rows": figures.MOST_ROWS,
        "commands": _commands(facts, diagnosed),
    }


def _charts(facts: Facts, diagnosed: Diagnosed | None, audit: Audited | None) -> dict[str, Markup]:
    charts: dict[str, Markup] = {}
    if facts.utility is not None:
        charts["quality"] = quality_by_round(facts.utility, facts.aborted)
        charts["blocks"] = quality_by_block(facts.utility)
    if diagnosed is not None:
        charts["answers"] = block_answers(diagnosed)
        charts["noise"] = loss_by_noise(diagnosed)
    if facts.spending and math.isfinite(largest_epsilon(facts)):
        charts["epsilon"] = figures.epsilon_by_company(facts.spending)
    if facts.absences or facts.aborted:
        charts["absences"] = figures.absences(facts)
    if audit is not None and (rows := shares(audit.groups)):
        charts["success"] = success_by_attack(rows)
    return charts


def _commands(facts: Facts, diagnosed: Diagnosed | None) -> str:
    if facts.real:
        return f"fedblocks report {facts.folder}"
    reference = " --with-reference" if facts.utility and facts.utility.reference else ""
    controls = " --with-controls" if diagnosed and diagnosed.controlled else ""
    return f"fedblocks simulate settings.toml{reference}{controls}\nfedblocks audit\nfedblocks report"


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", "none" if value is None else str(value)))
    return rows


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _factor(epsilon: float) -> str:
    if epsilon > 30:
        return "a number beyond use"
    return f"{math.exp(epsilon):,.0f}" if epsilon > 3 else f"{math.exp(epsilon):.3g}"


def _epsilon(value: float) -> str:
    """Rounded up, so that the shown epsilon is never below the one spent."""
    return f"{round_up(value):g}" if math.isfinite(value) else "unbounded"
