"""What the strongest applicable attacks of an audit have recovered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...threat_model.results import Result, Statement

# Of these an attack's success is a share of cases or an area under a curve; the others test claims.
STATEMENTS: tuple[Statement, ...] = ("reconstruction", "membership", "extraction")
_LABELS = "labels"  # which a guess tells too, one of ten in ten classes: no example is rebuilt from it
LEAST = 10  # cases of an attack whose time ran out: of fewer, the largest of many figures is a lucky one


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """One attack's result. `value` from 0 to 1, with the ends of its interval and the cases that it comes from;
    `baseline`: what is recovered without the release; `of`: how many figures it is the largest of."""

    statement: str
    attack: str
    adversary: str
    view: str
    statistic: str
    unit: str
    outcome: str
    value: float
    low: float
    high: float
    n: int
    baseline: float | None
    block: int | None
    company: str | None
    of: int


def strongest(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Of each statement the result whose interval begins furthest above its baseline, among views that a run shows.

    By the interval's lower end, since a lucky single case is no strength; an attack that was cut short counts from
    `LEAST` cases on, or where there is no other. It is still the largest of many, so it lies above its own
    expectation, of which its interval does not know.
    """
    found = []
    for statement in STATEMENTS:
        unit = "auc" if statement == "membership" else "share"
        own = [
            r for r in results
            if r.statement == statement and r.protected and r.value is not None and r.unit == unit
            and not r.statistic.startswith(_LABELS)
        ]  # fmt: skip
        enough = [
            r for r in own if r.outcome != "inconclusive" or (r.value is not None and r.value.n >= LEAST)
        ]
        if own:
            found.append(_told(max(enough or own, key=_advantage), len(own)))
    return found


def _advantage(result: Result) -> tuple[float, int]:
    """At the lower end, 0: no better than without the release; 1: everything. Then the one of most cases."""
    assert result.value is not None
    base = result.baseline.value if result.baseline is not None else 0.5 if result.unit == "auc" else 0.0
    return (result.value.low - base) / (1 - base) if base < 1 else 0.0, result.value.n


def _told(result: Result, of: int) -> dict[str, Any]:
    value = result.value
    assert value is not None
    return vars(
        Recovered(
            statement=result.statement, attack=result.attack, adversary=result.adversary, view=result.view,
            statistic=result.statistic, unit=result.unit, outcome=result.outcome, value=value.value,
            low=max(value.low, 0.0), high=min(value.high, 1.0), n=value.n,
            baseline=None if result.baseline is None else result.baseline.value, block=result.block,
            company=result.company, of=of,
        )
    )  # fmt: skip
