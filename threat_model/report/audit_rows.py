"""An audit's results as rows of tables: checks that held of one kind share a row, and statements about epsilon."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..results import Result
from ..sentences import figure, grouped, interval
from .judgement import plain

_DELTA = re.compile(r"\bdelta=([0-9.e+-]*[0-9])")  # as an audit names it; pages have one way to print it


@dataclass(frozen=True)
class ResultRow:
    """All texts as they are shown."""

    attack: str
    adversary: str
    view: str
    block: str
    company: str
    statistic: str
    value: str
    interval: str
    n: str
    control: str
    baseline: str
    ceiling: str
    outcome: str


@dataclass(frozen=True)
class StatementRow:
    statement: str
    about: str
    tests: int
    figure: str
    outcome: str


def collapsed_rows(results: Sequence[Result]) -> tuple[list[ResultRow], int]:
    """A row for each result that applies; conformance checks that held share one by statistic. And how many do."""
    rows: list[ResultRow] = []
    held: dict[tuple[str, ...], list[Result]] = {}
    for r in results:
        if r.outcome == "not applicable":
            continue
        if r.statement == "conformance" and r.outcome == "held" and r.value is not None:
            held.setdefault((r.attack, r.adversary, r.view, r.statistic, r.unit), []).append(r)
        else:
            rows.append(_row(r))
    for (attack, adversary, view, statistic, unit), same in held.items():
        values = [r.value for r in same if r.value is not None]
        low, high = min(v.value for v in values), max(v.value for v in values)
        spread = figure(low, unit) if low == high else f"{figure(low, unit)} to {figure(high, unit)}"
        where = len({r.block for r in same if r.block is not None})
        who = len({r.company for r in same if r.company is not None})
        rows.append(
            ResultRow(
                attack=attack, adversary=adversary, view=view, block=_count(where, same[0].block),
                company=_count(who, same[0].company), statistic=statistic, value=spread,
                interval=f"{len(same)} checks", n=f"{min(v.n for v in values):,}", control="–", baseline="–",
                ceiling="–", outcome="held",
            )
        )  # fmt: skip
    return rows, sum(len(same) for same in held.values())


def _count(number: int, only: object) -> str:
    if number == 0:
        return "–"
    return str(only) if number == 1 else f"all {number}"


def _row(r: Result) -> ResultRow:
    value, unit = r.value, r.unit
    return ResultRow(
        attack=r.attack,
        adversary=r.adversary,
        view=r.view,
        block="–" if r.block is None else str(r.block),
        company=r.company or "–",
        statistic=r.statistic,
        value="–" if value is None else figure(value.value, unit),
        interval="–" if value is None else f"{figure(value.low, unit)} to {figure(value.high, unit)}",
        n="–" if value is None else f"{value.n:,}",
        control="–" if r.control is None else figure(r.control.value, unit),
        baseline="–" if r.baseline is None else figure(r.baseline.value, unit),
        ceiling="–" if r.ceiling is None else figure(r.ceiling, unit),
        outcome=r.outcome,
    )


def statement_rows(results: Sequence[Result]) -> list[StatementRow]:
    """One for each kind of statement about epsilon and each view; checks of conformance are counted."""
    rows = []
    for statement in ("certificate", "conformance", "estimate"):
        own = [r for r in results if r.statement == statement]
        for group in grouped(own) if statement != "conformance" else ():
            worst = group.worst
            if worst.value is None:
                text = worst.reason or "–"
            else:
                text = f"{figure(worst.value.value, worst.unit)} ({interval(worst.value, worst.unit)})"
            about = _DELTA.sub(
                lambda found: f"δ = {plain(float(found[1]))}", f"{worst.statistic}, {worst.view}"
            )
            rows.append(StatementRow(statement, about, len(group.results), text, worst.outcome))
        if statement == "conformance" and own:
            rows += _conformance(own)
    return rows


def _conformance(own: list[Result]) -> list[StatementRow]:
    rows = []
    for view in dict.fromkeys(r.view for r in own):
        tests = [r for r in own if r.view == view and r.outcome != "not applicable"]
        if not tests:
            continue
        bad = [r for r in tests if r.outcome == "refuted"]
        held = sum(r.outcome == "held" for r in tests)
        text = "; ".join(f"{r.statistic}: {r.reason}" for r in bad[:3]) or f"{held} of {len(tests)} held"
        outcome = "refuted" if bad else "held" if held == len(tests) else "inconclusive"
        rows.append(StatementRow("conformance", view, len(tests), text, outcome))
    return rows
