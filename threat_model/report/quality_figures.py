"""The figures of quality in the family's metric: over the rounds, and after each block of the chain."""

from __future__ import annotations

import math

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from .canvas import (
    ALERT,
    DASHED,
    DOTTED,
    INK,
    LEFT,
    MUTED,
    NARROW,
    PAPER,
    PRIVATE,
    PUBLIC,
    REFERENCE,
    SOLID,
    WIDE,
    at_end,
    axes,
    chart,
    legend_above,
    spread,
    title_at_top,
    whole_numbers,
)
from .facts import Utility
from .measures import Measure

_BAR = 0.28  # of a block's width
_CHARACTER = 6.6  # pixels


def quality_by_round(utility: Utility, aborted: dict[int, str]) -> Markup:
    """Quality of the whole chain on private and public data, against the public model it started from."""
    first, last, m = utility.first, utility.last, utility.measure
    label = (
        f"Line chart of {m.words} by round, {m.direction}. {utility.data.capitalize()}: "
        f"{m.show(first.judged[-1])} at round {first.round}, "
        f"{m.show(last.judged[-1])} at round {last.round}."
    )
    if last.public:
        label += f" Public data: {m.show(first.public[-1])} to {m.show(last.public[-1])}."

    def draw(figure: Figure, wide: bool) -> None:
        judged = "private, held out" if utility.private else "public data"
        series = [(judged, PRIVATE, SOLID, [(p.round, p.judged[-1]) for p in utility.points])]
        if last.public:
            series.append(("public data", PUBLIC, DASHED, [(p.round, p.public[-1]) for p in utility.points]))
        if utility.reference:
            twin = [(p.round, p.judged[-1]) for p in utility.reference]
            series.append(("private, no noise", REFERENCE, DOTTED, twin))
        ends = []
        ax = axes(figure, LEFT, 30 if wide else 18 * len(series) + 44, 190 if wide else 16, 44)
        for name, colour, dash, line in series:
            rounds, values = zip(*line, strict=True)
            ax.plot(rounds, values, color=colour, linestyle=dash)
            ends.append((name, colour, values[-1]))
        base = first.judged[-1]
        ax.axhline(base, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        scale(ax, m, [value for *_, line in series for _, value in line])
        ax.set_xlim(first.round, max(last.round, first.round + 1))
        ax.set_xlabel("round")
        whole_numbers(ax, first.round, last.round, wide)
        low, high = ax.get_ylim()
        for round_ in aborted:
            ax.plot([round_], [low], marker="x", color=ALERT, markersize=6, clip_on=False)
        ends.append(("public model at start", MUTED, base))
        title_at_top(figure, f"{m.words}, {m.direction}")
        if wide:
            pixel = (high - low) / (figure.get_figheight() * 72 - 74)
            places = spread([v for *_, v in ends], 15 * pixel, low, high)
            for (name, colour, value), y in zip(ends, places, strict=True):
                at_end(ax, y, f"{name} {m.short(value)}", colour)
        else:
            legend_above(ax, [f"{name} {m.short(value)}" for name, _, value in ends])

    return chart("quality", label, draw, 300, narrow_height=330)


def quality_by_block(utility: Utility) -> Markup:
    """Quality after each block of the chain, first round against last."""
    first, last, m = utility.first, utility.last, utility.measure
    losing = dict(utility.losing_blocks())
    label = f"{m.title} ({m.direction}) on {utility.data} after each block: " + "; ".join(
        f"block {b} {m.show(before)} at round {first.round}, {m.show(after)} at round {last.round}"
        for b, (before, after) in enumerate(zip(first.judged, last.judged, strict=True))
    )

    def draw(figure: Figure, wide: bool) -> None:
        ax = axes(figure, LEFT, 52, 24, 30)
        blocks = list(range(len(last.judged)))
        room = ((WIDE if wide else NARROW) - LEFT - 24) / len(blocks) * _BAR
        for points, colour, shift in ((first.judged, MUTED, -_BAR / 2), (last.judged, PRIVATE, _BAR / 2)):
            ax.bar(
                [b + shift for b in blocks],
                points,
                _BAR * 0.94,
                color=PAPER if colour == MUTED else colour,
                edgecolor=colour,
                linewidth=1.2,
            )
            fits = max(len(m.short(value)) for value in points) * _CHARACTER <= room
            for b, value in zip(blocks, points, strict=True):
                mark = "▼" if colour == PRIVATE and b in losing else ""
                ax.annotate(
                    "\n".join(filter(None, (mark, m.short(value) if fits else ""))),
                    (b + shift, value),
                    (0, 3),
                    textcoords="offset points",
                    ha="center",
                    fontsize=11,
                    color=ALERT if mark else INK,
                )
        scale(ax, m, [0.0, *first.judged, *last.judged])
        title_at_top(figure, f"{m.words}, {m.direction}")
        name_blocks(ax, len(blocks))

    return chart("blocks", label, draw, 262)


def scale(ax: Axes, m: Measure, values: list[float]) -> None:
    """The vertical axis: shares from 0 in per cent; other metrics over their range and a margin."""
    low, high = min(values), max(values)
    if m.is_share:
        limit = min(1.0, math.ceil((high + 0.04) * 10) / 10)
        step = 0.2 if limit > 0.5 else 0.1 if limit > 0.2 else 0.05
        ticks = [i * step for i in range(round(limit / step) + 1)]
        ax.set_ylim(0, limit)
        ax.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])
        return
    room = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    ax.set_ylim(0.0 if low == 0 else low - room, high + room)
    plain_numbers(ax, 5)


def plain_numbers(ax: Axes, most: int) -> None:
    """At most `most` + 1 ticks, all with equally many decimals."""
    ax.yaxis.set_major_locator(MaxNLocator(most))
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    ax.yaxis.set_major_formatter(formatter)


def name_blocks(ax: Axes, blocks: int) -> None:
    """The horizontal axis: one place a block, at 0, 1, 2, ..."""
    ax.set_xlim(-0.6, blocks - 0.4)
    ax.set_xticks(range(blocks), [f"block {b}" if blocks <= 5 else str(b) for b in range(blocks)])
