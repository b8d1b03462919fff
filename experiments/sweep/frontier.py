"""The frontier of a sweep: utility against epsilon, and against what the strongest attacks recovered.

    found = Frontier.of(Path("runs/sweep-digits-5d0c3a1b"))
    found.rows                   # the table: one `Point` for each setting, over its seeds
    found.figure                 # the same as an SVG element in the page's colours (see `threat_model.report.canvas`)

A figure of several seeds is their mean with Student's interval at 95%: it says how far another seed, so another deal
of the data, other initial weights and other noise, would move it. One seed has no interval.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ...blocks import Metric
from ...blocks.build import metric_of
from ...errors import InputError
from ...server.run_folder import RunFolder
from ...settings import read_simulation
from ...threat_model.intervals import Estimate, mean
from ...threat_model.report.measures import Measure
from .drawing import frontier_figure
from .grid import EPSILON, shown
from .points import WORDS, Attacked, Point, PointKind
from .scheduler import asked_of
from .strongest import STATEMENTS
from .table import TABLE, Row, read_table


@dataclass(frozen=True)
class Frontier:
    """`cells`: how many have ended; `failed`: those that failed, with their reasons."""

    folder: Path
    asked: dict[str, Any]
    measure: Measure
    rows: tuple[Point, ...]
    cells: tuple[Row, ...]

    @classmethod
    def of(cls, folder: Path) -> Frontier:
        """What has ended so far. Raises: InputError where there is no sweep, or nothing of it has ended."""
        asked = asked_of(folder)
        cells = read_table(folder / TABLE)
        metric = _metric(folder)
        points = points_of(cells, metric.higher_is_better)
        return cls(folder, asked, Measure(metric), tuple(points), tuple(cells))

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.cells if row.status == "failed"]

    @cached_property
    def figure(self) -> Markup:
        """Needs matplotlib; empty where nothing can be drawn."""

        return frontier_figure(self.rows, self.measure)


def points_of(cells: Sequence[Row], higher_is_better: bool = True) -> list[Point]:
    """By group: private runs by epsilon, then what they are compared with."""
    alone = {
        (_start_key(row), row.seed, name): value
        for row in cells if row.kind == "alone" for name, value in row.by_company.items()
    }  # fmt: skip
    sign = 1 if higher_is_better else -1
    by_place: dict[tuple[str, PointKind, float | None], list[Row]] = {}
    for row in cells:
        by_place.setdefault((_group_key(row), _kind(row), row.epsilon), []).append(row)
    found = [_point(kind, rows, alone, sign) for (_, kind, _), rows in by_place.items()]
    starts: dict[str, list[Row]] = {}
    for row in cells:
        if row.status == "done" and row.kind == "run":
            starts.setdefault(_group_key(row), []).append(row)
    found += [_public(rows) for rows in starts.values()]
    order = list(dict.fromkeys(_key(point.group) for point in found if point is not None))
    kinds = list(WORDS)
    return sorted(
        (point for point in found if point is not None),
        key=lambda p: (order.index(_key(p.group)), kinds.index(p.kind), p.epsilon or 0.0),
    )


def _point(kind: PointKind, rows: Sequence[Row], alone: dict[Any, float], sign: int) -> Point | None:
    done = [row for row in rows if row.status == "done" and row.quality is not None]
    if not done:
        return None
    own = [(row, name, value) for row in done for name, value in row.by_company.items()]
    beside = [
        (value, alone[key]) for row, name, value in own if (key := (_start_key(row), row.seed, name)) in alone
    ]
    spent = [row.epsilon_spent for row in done if row.epsilon_spent is not None]
    return Point(
        group=_group(done[0]),
        kind=kind,
        epsilon=done[0].epsilon,
        epsilon_spent=max(spent, default=None),
        quality=_mean([row.quality for row in done if row.quality is not None]),
        seeds=tuple(row.seed for row in done),
        failed=len(rows) - len(done),
        by_company={
            n: statistics.fmean(v for _, m, v in own if m == n) for n in sorted({n for _, n, _ in own})
        },
        better_than_alone=_better(beside, sign) if kind != "alone" else None,
        attacks=tuple(each for name in STATEMENTS if (each := _attacked(name, done)) is not None),
    )


def _better(beside: list[tuple[float, float]], sign: int) -> tuple[int, int] | None:
    return (sum(sign * (here - alone) > 0 for here, alone in beside), len(beside)) if beside else None


def _public(rows: Sequence[Row]) -> Point | None:
    by_seed = {row.seed: row.quality_public_model for row in rows if row.quality_public_model is not None}
    if not by_seed:
        return None
    return Point(
        group=_group(rows[0]), kind="public", epsilon=None, epsilon_spent=None,
        quality=_mean(list(by_seed.values())), seeds=tuple(by_seed),
    )  # fmt: skip


def _attacked(statement: str, rows: Sequence[Row]) -> Attacked | None:
    found = [each for row in rows for each in row.attacks if each["statement"] == statement]
    if not found:
        return None
    worst = max(found, key=lambda each: each["value"])
    if len({each["value"] for each in found}) == 1:
        # Their own intervals, of the cases that each was tried on: from seeds that agree no spread can be told, and
        # nothing found in 40 cases is not surely nothing.
        recovered = Estimate(
            value=worst["value"], low=min(each["low"] for each in found), high=max(each["high"] for each in found),
            n=worst["n"], method="exact",
        )  # fmt: skip
    else:
        recovered = _mean([each["value"] for each in found])
    unfinished = sum(each["outcome"] == "inconclusive" for each in found)
    return Attacked(
        statement=statement, recovered=recovered, worst=worst, audits=len(found), unfinished=unfinished
    )  # fmt: skip


def _mean(values: list[float]) -> Estimate:
    return mean(np.array(values, dtype=np.float64))


def _kind(row: Row) -> PointKind:
    if row.kind != "run":
        return row.kind
    return "without noise" if row.epsilon is None else "private"


def _group(row: Row) -> dict[str, Any]:
    return {field: value for field, value in row.axes.items() if field != EPSILON}


def _start_key(row: Row) -> str:
    """What a run and its baselines have in common: baselines know nothing of privacy."""
    return _key({field: value for field, value in row.axes.items() if not field.startswith("privacy.")})


def _group_key(row: Row) -> str:
    return _key(_group(row))


def _key(group: dict[str, Any]) -> str:
    return ", ".join(f"{field} {shown(value)}" for field, value in group.items())


def _metric(folder: Path) -> Metric:
    """Of any run that the sweep has begun: all cells have one family, unless it is an axis, which has no frontier."""
    for place in ("cells", "shared"):
        for plan in sorted((folder / place).glob("[!.]*/plan.json")):
            return metric_of(read_simulation(RunFolder(plan.parent).path).model)
    raise InputError(
        "sweep", str(folder), "no cell has begun yet; run it again with the command that made it"
    )
