"""The frontier as the lines of a table, as a page of its own, and its figure as a file."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ... import __version__, atomic_file
from ...threat_model.intervals import Estimate
from ...threat_model.report.measures import three_digits
from .frontier import Frontier
from .points import Attacked, Point
from .strongest import STATEMENTS

# The report's own (`threat_model/report/report.css`).
_LIGHT = {
    "paper": "#ffffff", "line": "#d5dbe1", "grid": "#e3e8ec", "ink": "#17212b", "muted": "#55626f",
    "private": "#0b5fae", "public": "#7a4a9e", "reference": "#0d7566", "alert": "#b3361b",
}  # fmt: skip
_DARK = {
    "paper": "#12181e", "line": "#364250", "grid": "#2a343f", "ink": "#e6ebf0", "muted": "#a3b0bd",
    "private": "#6fb6f5", "public": "#c79be6", "reference": "#56c7b4", "alert": "#f58b6c",
}  # fmt: skip
_COLUMNS = ("setting", "epsilon spent", "quality", "seeds", "better than alone", *STATEMENTS)
_ALWAYS = 4  # of them, attacked or not


def table_of(found: Frontier) -> tuple[list[str], list[list[str]]]:
    """The heads of the columns, and a line for each point; attacks have a column where one was tried."""
    lines = [_line(found, point) for point in found.rows]
    kept = [i for i in range(len(_COLUMNS)) if i < _ALWAYS or any(line[i] for line in lines)]
    return [_COLUMNS[i] for i in kept], [[line[i] for i in kept] for line in lines]


def write_page(found: Frontier, to: Path) -> None:
    """One self-contained HTML file; an existing one is replaced."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["digits"] = three_digits
    columns, lines = table_of(found)
    page = environment.get_template("frontier.html.j2").render(
        asked=found.asked,
        measure=found.measure,
        figure=found.figure,
        columns=columns,
        lines=lines,
        attacks=[(_title(point), each.worst) for point in found.rows for each in point.attacks],
        failed=found.failed,
        command=command_of(found.asked),
        cells=len(found.cells),
        version=__version__,
        light=_LIGHT,
        dark=_DARK,
    )
    atomic_file.write(to, page.encode())


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
    spent = "" if point.epsilon_spent is None else f"{point.epsilon_spent:.3g}"
    if point.kind == "without noise":
        spent = "unbounded"
    seeds = f"{len(point.seeds)}" + (f", {point.failed} failed" if point.failed else "")
    paid = "" if point.better_than_alone is None else "{} of {}".format(*point.better_than_alone)
    attacks = ["" if each is None else _attacked(each) for each in map(point.attacked, STATEMENTS)]
    return [_title(point), spent, _interval(point.quality, found.measure.show), seeds, paid, *attacks]


def _title(point: Point) -> str:
    return f"{point.group_title}: {point.title}" if point.group else point.title


def _attacked(each: Attacked) -> str:
    value: Estimate = each.recovered
    bounded = value.model_copy(update={"low": max(value.low, 0.0), "high": min(value.high, 1.0)})
    form = bounded if math.isfinite(value.low) else value
    unit = "AUC " if each.worst["unit"] == "auc" else ""
    return f"{unit}{_interval(form, three_digits)}, {each.worst['attack']}"


def _interval(value: Estimate, show: Callable[[float], str]) -> str:
    if not math.isfinite(value.low):
        return show(value.value)
    return f"{show(value.value)} ({show(value.low)} to {show(value.high)})"
