"""Leakage by adversary and block: the strongest reconstruction and the strongest membership test of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..adversaries import ADVERSARIES
from ..results import Result
from ..sentences import counted, figure
from .answers import strength


@dataclass(frozen=True)
class Cell:
    """`found`: something protected was found there."""

    rebuilt: str
    member: str
    found: bool
    tested: bool


@dataclass(frozen=True)
class Row:
    adversary: str
    title: str
    protected: bool
    cells: tuple[Cell, ...]


def by_adversary(results: Sequence[Result], blocks: Sequence[int]) -> tuple[Row, ...]:
    """Rows of adversaries that try to learn of examples; the auditor only tests claims."""
    rows = []
    for each in ADVERSARIES.values():
        if each.name == "auditor":
            continue
        own = [r for r in results if r.adversary == each.name and r.outcome != "not applicable"]
        cells = tuple(_cell([r for r in own if r.block in (block, None)]) for block in blocks)
        if any(cell.tested for cell in cells):
            rows.append(Row(each.name, each.title, each.protected, cells))
    return tuple(rows)


def _cell(results: list[Result]) -> Cell:
    rebuilt = _worst([r for r in results if r.statement == "reconstruction" and r.unit == "share"])
    member = _worst([r for r in results if r.statement == "membership" and r.unit == "auc"])
    found = any(
        r.protected and r.outcome in ("found", "partly found") and r.statement == "reconstruction"
        for r in results
    )
    return Cell(_share(rebuilt), _area(member), found, rebuilt is not None or member is not None)


def _worst(results: list[Result]) -> Result | None:
    return min((r for r in results if r.value is not None), key=strength, default=None)


def _share(result: Result | None) -> str:
    if result is None or result.value is None:
        return "–"
    return f"{counted(result.value, 'share')} (≤\u00a0{figure(result.value.high, 'share')})"


def _area(result: Result | None) -> str:
    if result is None or result.value is None:
        return "–"
    value = result.value
    return f"{value.value:.2f} (≤\u00a0{value.high:.2f})"
