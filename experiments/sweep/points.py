"""A point of the frontier: one setting over its seeds, as a table or a figure shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ...threat_model.intervals import Estimate
from ...threat_model.report.measures import Measure
from .grid import shown

PointKind = Literal["private", "without noise", "pooled", "alone", "public"]
WORDS: dict[PointKind, str] = {
    "private": "federation",
    "without noise": "federation, no noise",
    "pooled": "one pooled data set",
    "alone": "each company alone",
    "public": "public model",
}


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """What the strongest attack of one statement recovered: the mean over seeds of each audit's strongest result.

    `worst`: the largest of these, as `strongest.Recovered` has it, with its own interval. `audits`: how many;
    `unfinished`: in how many of them that attack's time ran out.
    """

    statement: str
    recovered: Estimate
    worst: dict[str, Any]
    audits: int
    unfinished: int = 0

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"recovered": self.recovered.model_dump(mode="json")}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting over its seeds. `group`: the values of the axes but epsilon; `epsilon`: what was asked for;
    `epsilon_spent`: the most that a ledger of its runs says, none without noise. `quality`: the family's metric on
    held-out private examples; `by_company`: on each company's own, the mean over seeds; `better_than_alone`: for how
    many companies, over the seeds, that is better than what each reaches alone, and of how many. `failed`: seeds
    without a result."""

    group: dict[str, Any]
    kind: PointKind
    epsilon: float | None
    epsilon_spent: float | None
    quality: Estimate
    seeds: tuple[int, ...]
    failed: int = 0
    by_company: dict[str, float] = field(default_factory=dict)
    better_than_alone: tuple[int, int] | None = None
    attacks: tuple[Attacked, ...] = ()

    @property
    def title(self) -> str:
        words = WORDS[self.kind]
        return f"{words}, epsilon {shown(self.epsilon)}" if self.kind == "private" else words

    @property
    def group_title(self) -> str:
        return ", ".join(f"{field} {shown(value)}" for field, value in self.group.items())

    def to_json(self) -> dict[str, Any]:
        attacks = [each.to_json() for each in self.attacks]
        return vars(self) | {"quality": self.quality.model_dump(mode="json"), "attacks": attacks}

    def attacked(self, statement: str) -> Attacked | None:
        return next((each for each in self.attacks if each.statement == statement), None)


def possible(value: Estimate, measure: Measure) -> Estimate:
    """Of a share no interval leaves 0 to 1, however few the seeds."""
    if not (measure.is_share and math.isfinite(value.low)):
        return value
    return value.model_copy(update={"low": max(value.low, 0.0), "high": min(value.high, 1.0)})
