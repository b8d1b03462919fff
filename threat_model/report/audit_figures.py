"""The figure of an audit: every share and every AUC with its interval, beside its control, baseline and ceiling."""

from __future__ import annotations

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results import Result
from ..sentences import Group, figure
from .canvas import ALERT, GRID, INK, MUTED, PAPER, PRIVATE, REFERENCE, axes, chart, in_lines

_ROW, _LINE, _FOOT, _TOP = 38, 16, 48, 4
MOST = 12  # rows; the others are in the tables


def shares(groups: list[Group]) -> list[Group]:
    """Those that have a place on a scale from 0 to 1, of protected views, as far as they are shown."""
    return [
        g for g in groups
        if g.worst.protected and g.worst.value is not None and g.worst.unit in ("share", "auc")
    ][:MOST]  # fmt: skip


def success_by_attack(groups: list[Group]) -> Markup:
    """Each group's worst block: the figure, its 95% interval, and what it is to be read beside."""
    rows = [group.worst for group in groups]
    label = "Dots with intervals, from 0 to 1. " + " ".join(_spoken(row) for row in rows)
    tops = {wide: _tops(rows, wide) for wide in (True, False)}

    def draw(drawing: Figure, wide: bool) -> None:
        left, right = (12, 60) if wide else (8, 46)
        ax = axes(drawing, left, _TOP, right, _FOOT - 4)
        ax.grid(False)
        ax.grid(axis="x", color=GRID, linewidth=0.8)
        ax.set_xlim(-0.01, 1.01)
        ax.set_ylim(tops[wide][-1], 0)
        ax.set_yticks([])
        for row, top, bottom in zip(rows, tops[wide], tops[wide][1:], strict=False):
            _row(ax, row, top, bottom - 12, wide)
        ax.set_xlabel("share of cases, or area under the curve")

    height, narrow = (_TOP + tops[wide][-1] + _FOOT for wide in (True, False))
    return chart("success", label, draw, height, narrow_height=narrow)


def _named(row: Result, wide: bool) -> str:
    return in_lines(f"{row.attack}: {row.statistic}, {row.view}", 92 if wide else 46)


def _tops(rows: list[Result], wide: bool) -> list[int]:
    """Where each row begins, and the last ends, in pixels."""
    tops = [0]
    for row in rows:
        tops.append(tops[-1] + _ROW + _LINE * _named(row, wide).count("\n"))
    return tops


def _spoken(row: Result) -> str:
    assert row.value is not None
    return f"{row.attack}, {row.view}, {row.statistic}: {figure(row.value.value, row.unit)}."


def _row(ax: Axes, row: Result, top: float, y: float, wide: bool) -> None:
    value = row.value
    assert value is not None
    ax.annotate(
        _named(row, wide), (0, top + 3), (0, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
        va="top", fontsize=11, color=INK if wide else MUTED, annotation_clip=False,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1},
    )  # fmt: skip
    low, high = max(value.low, 0.0), min(value.high, 1.0)
    ax.plot([low, high], [y, y], color=ALERT, linewidth=2, solid_capstyle="butt")
    for beside, colour, marker in (
        (None if row.control is None else row.control.value, REFERENCE, "s"),
        (None if row.baseline is None else row.baseline.value, PRIVATE, "o"),
        (row.ceiling, MUTED, "|"),
    ):
        if beside is not None:
            ax.plot(
                [min(max(beside, 0), 1)], [y], marker=marker, color=colour, markersize=7, linestyle="none"
            )
    ax.plot([min(max(value.value, 0), 1)], [y], marker="D", color=ALERT, markersize=6, zorder=3)
    ax.annotate(
        figure(value.value, row.unit), (1, y), (8, 0), xycoords=("axes fraction", "data"),
        textcoords="offset points", va="center_baseline", fontsize=11, color=INK,
    )  # fmt: skip
