"""The frontier as the lines of a table, as a part of a report, and its figure as a file."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from ...server.run_folder import RunFolder
from ...threat_model.intervals import Estimate
from ...threat_model.report import document
from ...threat_model.report.frontier import Drawn
from ...threat_model.report.judgement import number
from ...threat_model.report.measures import three_digits
from ...threat_model.sentences import figure
from .frontier import Frontier
from .points import Attacked, Point, possible
from .scheduler import ASKED
from .strongest import STATEMENTS

# The report's own (`threat_model/report/report.css`).
_LIGHT = {
    "paper": "#ffffff", "line": "#d5dbe1", "grid": "#e3e8ec", "ink": "#17212b", "muted": "#55626f",
    "private": "#0b5fae", "public": "#7a4a9e", "reference": "#0d7566", "alert": "#b3361b",
}  # fmt: skip
_COLUMNS = ("setting", "epsilon spent", "quality", "seeds", "better than alone", *STATEMENTS)
_ALWAYS = 4  # of them, attacked or not


def table_of(found: Frontier) -> tuple[list[str], list[list[str]]]:
    """The heads of the columns, and a line for each point; attacks have a column where one was tried."""
    lines = [_line(found, point) for point in found.rows]
    kept = [i for i in range(len(_COLUMNS)) if i < _ALWAYS or any(line[i] for line in lines)]
    return [_COLUMNS[i] for i in kept], [[line[i] for i in kept] for line in lines]


def drawn(found: Frontier, *, figure: bool = True) -> Drawn:
    """As the reports of the sweep and of its cells show it; `figure` takes most of the time."""
    columns, lines = table_of(found)
    return Drawn(data_of(found), found.figure if figure else Markup(""), columns, lines)


def frontier_beside(run: RunFolder, *, figure: bool = True) -> Drawn | None:
    """Of the sweep that the run is a cell of; none where it is no cell.

    Raises: InputError where the sweep's files cannot be read.
    """
    cells = run.path.parent
    if cells.name != "cells" or not (cells.parent / ASKED).is_file():
        return None
    return drawn(Frontier.of(cells.parent), figure=figure)


def data_of(found: Frontier) -> document.Frontier:
    """The same as the reports' data have it."""
    metric = found.measure.metric
    return document.Frontier(
        sweep=found.folder.resolve().name,
        metric=metric.words,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        cells=len(found.cells),
        command=command_of(found.asked),
        points=tuple(_data(point) for point in found.rows),
    )


def _data(point: Point) -> document.FrontierPoint:
    return document.FrontierPoint(
        setting=_title(point), kind=point.kind, epsilon=point.epsilon, epsilon_spent=point.epsilon_spent,
        quality=point.quality.value, low=finite(point.quality.low), high=finite(point.quality.high),
        seeds=point.seeds, failed=point.failed, better_than_alone=point.better_than_alone,
        attacks=tuple(_attack(each) for each in point.attacks),
    )  # fmt: skip


def _attack(each: Attacked) -> document.FrontierAttack:
    named = {
        name: each.worst[name]
        for name in ("attack", "adversary", "view", "statistic", "unit", "n", "baseline", "of")
    }
    return document.FrontierAttack(
        statement=each.statement, value=each.recovered.value, low=finite(each.recovered.low),
        high=finite(each.recovered.high), audits=each.audits, unfinished=each.unfinished, worst=each.worst["value"],
        worst_low=each.worst["low"], worst_high=each.worst["high"], **named,
    )  # fmt: skip


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def figure_file(found: Frontier) -> str:
    """The wide figure as an SVG file by itself, in the colours of light pages."""
    [svg] = re.findall(r"<svg class=\"chart wide\".*?</svg>", str(found.figure), re.DOTALL) or ["<svg />"]
    svg = re.sub(r"var\(--(\w+)\)", lambda name: _LIGHT[name[1]], svg)
    style = 'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" style="background:#ffffff"'
    return svg.replace("<svg ", f"<svg {style} ", 1)


def command_of(asked: dict[str, Any]) -> str:
    """The command that makes the sweep again."""
    words = ["fedblocks", "sweep", asked["preset"]]
    words += [word for each in asked["over"] for word in ("--over", each)]
    words += ["--seeds", str(asked["seeds"])]
    words += [word for each in asked["set"] for word in ("--set", each)]
    return shlex.join(words + (["--audit"] if asked["audit"] else []))


def _line(found: Frontier, point: Point) -> list[str]:
    spent = "" if point.epsilon_spent is None else number(point.epsilon_spent)
    if point.kind == "without noise":
        spent = "unbounded"
    seeds = f"{len(point.seeds)}" + (f", {point.failed} failed" if point.failed else "")
    paid = "" if point.better_than_alone is None else "{} of {}".format(*point.better_than_alone)
    attacks = ["" if each is None else attacked_words(each) for each in map(point.attacked, STATEMENTS)]
    return [
        _title(point),
        spent,
        _interval(possible(point.quality, found.measure), found.measure.show),
        seeds,
        paid,
        *attacks,
    ]


def _title(point: Point) -> str:
    return f"{point.group_title}: {point.title}" if point.group else point.title


def attacked_words(each: Attacked) -> str:
    value: Estimate = each.recovered
    bounded = value.model_copy(update={"low": max(value.low, 0.0), "high": min(value.high, 1.0)})
    form = bounded if math.isfinite(value.low) else value
    auc = each.worst["unit"] == "auc"
    text = (
        f"AUC {_interval(form, three_digits)}"
        if auc
        else _interval(form, lambda share: figure(share, "share"))
    )
    cut = ""
    if each.unfinished:
        cut = (
            ", cut short"
            if each.unfinished == each.audits
            else f", {each.unfinished} of {each.audits} cut short"
        )
    return f"{text}, {each.worst['attack']}{cut}"


def _interval(value: Estimate, show: Callable[[float], str]) -> str:
    if not math.isfinite(value.low):
        return show(value.value)
    return f"{show(value.value)} ({show(value.low)} to {show(value.high)})"
