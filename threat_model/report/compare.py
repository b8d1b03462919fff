"""Two runs side by side: what they promise, what was found, what they are good for, where their settings differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .costs import megabytes
from .document import Part, Quality, Report
from .judgement import number, plain


class Compared(Part):
    """One figure of both runs, as texts; `differs`: whether they are not the same."""

    what: str
    one: str
    other: str

    @property
    def differs(self) -> bool:
        return self.one != self.other


def compare(one: Report, other: Report) -> tuple[Compared, ...]:
    """First the figures, then the settings that differ."""
    pairs = zip(_figures(one), _figures(other), strict=True)
    rows = [Compared(what=what, one=a, other=b) for (what, a), (_, b) in pairs]
    asked = dict.fromkeys(a.question for report in (one, other) for a in report.attackers)
    for question in asked:
        rows.append(Compared(what=question, one=_answer(one, question), other=_answer(other, question)))
    first, second = dict(_flat(one.settings)), dict(_flat(other.settings))
    for key in dict.fromkeys((*first, *second)):
        a, b = first.get(key, "–"), second.get(key, "–")
        if a != b:
            rows.append(Compared(what=key, one=a, other=b))
    return tuple(rows)


def _figures(r: Report) -> Iterator[tuple[str, str]]:
    p = r.promise
    yield "gate", r.verdict.ending
    yield "ε", _epsilon(p.epsilon)
    yield "δ", plain(p.delta)
    yield "unit", p.unit
    yield "against", p.against or "–"
    for k in (2, 5):
        found = next((g.epsilon for g in p.groups if g.examples == k), None)
        yield f"ε for {k} examples of one person", _epsilon(found)
    yield "second accountant agrees", _agrees(r)
    yield "audit", r.audit
    yield "companies", f"{r.companies}"
    yield "rounds done", f"{r.rounds_done} of {r.rounds}"
    yield from _quality(r.quality)
    yield "sent by a company", megabytes(r.costs.bytes_up_a_company)
    yield "seconds of all rounds", "–" if r.costs.seconds is None else f"{r.costs.seconds:.4g}"


def _quality(q: Quality | None) -> Iterator[tuple[str, str]]:
    def shown(value: float | None) -> str:
        return "–" if q is None or value is None else f"{value:.1%}" if q.unit == "share" else f"{value:.4g}"

    yield "metric", "–" if q is None else q.metric
    yield "public model", shown(None if q is None else q.before)
    after = shown(None if q is None else q.after)
    if q is not None and q.low is not None and q.high is not None:
        after += f" ({q.low:.1%} to {q.high:.1%})"
    yield "after the run", after
    yield "the same without noise", shown(None if q is None else q.non_private)
    yield "on public data", shown(None if q is None else q.public_after)
    worst = {} if q is None else {groups.of: groups.worst_decile for groups in q.subgroups}
    for of in ("company", "class"):
        yield f"worst decile by {of}", shown(worst.get(of))


def _agrees(r: Report) -> str:
    found = {a.agrees for a in r.accounts} - {None}
    return "–" if not found else "yes" if found == {True} else "no"


def _answer(r: Report, question: str) -> str:
    return next((a.answer for a in r.attackers if a.question == question), "not asked")


def _epsilon(value: float | None) -> str:
    return "none" if value is None else number(value)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)
