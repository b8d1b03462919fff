"""What may be chosen: each setting of a sweep with what its runs' gates say, and a sentence that follows from it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...threat_model.report.judgement import number
from ...threat_model.report.measures import Measure
from .frontier import points_of
from .page import attacked_words, finite
from .points import Point, possible
from .report_data import Candidate, CellVerdict, Choice, Standing
from .table import Row

_SHOWN = ("reconstruction", "membership")


def choice_of(
    cells: Sequence[CellVerdict],
    rows: Mapping[str, Row],
    measure: Measure,
    folder: Path,
    minutes: float | None,
) -> Choice:
    """`rows`: the table's, by cell; `minutes`: of each audit, none where there was none."""
    by: dict[str, list[CellVerdict]] = {}
    for cell in cells:
        if cell.kind == "run":
            by.setdefault(cell.setting, []).append(cell)
    found = tuple(_candidate(name, own, [rows[c.cell] for c in own], measure) for name, own in by.items())
    return Choice(
        setting=_best([c for c in found if c.standing == "passes"], measure),
        sentence=_sentence(found, measure),
        next_step=_next(found, by, measure, folder, minutes),
        candidates=found,
    )


def _candidate(name: str, cells: Sequence[CellVerdict], rows: Sequence[Row], measure: Measure) -> Candidate:
    gates = [cell.gate for cell in cells]
    standing: Standing = "passes" if all(gate == "passed" for gate in gates) else "open"
    if "failed" in gates:
        standing = "ruled out"
    points = [
        p for p in points_of(rows, measure.metric.higher_is_better) if p.kind in ("private", "without noise")
    ]
    point = points[0] if points else None
    quality = None if point is None else possible(point.quality, measure)
    worst = [topic for cell in cells if cell.gate == "failed" for topic in cell.failed_questions]
    against = worst or [topic for cell in cells for topic in (*cell.open_questions, *cell.cautions)]
    missing = sum(gate is None for gate in gates)
    if missing:
        against.append(f"{missing} of {len(gates)} runs without a result")
    return Candidate(
        setting=name,
        epsilon_spent=None if point is None else point.epsilon_spent,
        runs=len(cells),
        passed=gates.count("passed"),
        open=gates.count("open"),
        failed=gates.count("failed"),
        standing=standing,
        quality=None if quality is None else quality.value,
        low=None if quality is None else finite(quality.low),
        high=None if quality is None else finite(quality.high),
        attacks=_attacks(point),
        against=tuple(dict.fromkeys(topic.partition(" (")[0] for topic in against)),
    )


def _attacks(point: Point | None) -> tuple[str, ...]:
    if point is None:
        return ()
    found = [point.attacked(name) for name in _SHOWN]
    return tuple(f"{each.statement} {attacked_words(each)}" for each in found if each is not None)


def _best(candidates: Sequence[Candidate], measure: Measure) -> str | None:
    known = [c for c in candidates if c.quality is not None]
    best = max(known, key=lambda c: measure.gain(0.0, c.quality or 0.0), default=None)
    return None if best is None else best.setting


def _sentence(found: Sequence[Candidate], measure: Measure) -> str:
    passing = [c for c in found if c.standing == "passes"]
    open_ = [c for c in found if c.standing == "open"]
    ruled = [c.setting for c in found if c.standing == "ruled out"]
    out = f" Ruled out by their own gates: {', '.join(ruled)}." if ruled else ""
    if passing:
        many = f"the {len(passing)} settings" if len(passing) > 1 else "the one setting"
        text = f"Of {many} of which every run passes its gate, {_compared(passing, measure)}."
        return f"{text}{out} Choosing by looking at private results is not part of any ε."
    text = "No setting has passed its gate with all of its runs: none can be chosen without a person."
    if open_:
        many = f"the {len(open_)} settings" if len(open_) > 1 else "the one setting"
        text += f" Of {many} that no gate rules out, {_compared(open_, measure)}."
    return f"{text}{out}"


def _compared(candidates: Sequence[Candidate], measure: Measure) -> str:
    """The most useful, and beside it the one that promises most."""
    known = [c for c in candidates if c.quality is not None]
    best = next((c for c in known if c.setting == _best(known, measure)), None)
    if best is None:
        return "none has a result"
    text = f"{best.setting} has the best {measure.words}, {_shown(best, measure)}"
    private = [c for c in known if c.epsilon_spent is not None]
    strict = min(private, key=lambda c: c.epsilon_spent or 0.0, default=best)
    if strict.setting != best.setting:
        text += (
            f"; {strict.setting} promises most (ε spent {number(strict.epsilon_spent or 0.0)}), with "
            f"{_shown(strict, measure)}"
        )
    return text


def _shown(candidate: Candidate, measure: Measure) -> str:
    text = "–" if candidate.quality is None else measure.show(candidate.quality)
    if candidate.low is None or candidate.high is None:
        return text
    return f"{text} ({measure.show(candidate.low)} to {measure.show(candidate.high)} over seeds)"


def _next(
    found: Sequence[Candidate],
    by: Mapping[str, Sequence[CellVerdict]],
    measure: Measure,
    folder: Path,
    minutes: float | None,
) -> str:
    """How to answer what is open of the most useful setting whose audits left something open; else empty."""
    if any(c.standing == "passes" for c in found):
        return ""
    best = _best([c for c in found if c.standing == "open" and c.open], measure)
    open_ = next((cell for cell in by.get(best or "", ()) if cell.gate == "open"), None)
    if open_ is None:
        return ""
    again = f"fedblocks audit {shlex.quote(str(folder / 'cells' / open_.cell))}"
    if minutes is None:
        return again
    return f"{again} --minutes {max(10.0, 5 * minutes):g}"
