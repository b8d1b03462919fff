"""The figure of the frontier: utility against epsilon, and against membership and reconstruction where audited."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...threat_model.intervals import Estimate
from ...threat_model.report.canvas import (
    ALERT,
    DASHED,
    DOTTED,
    INK,
    LEFT,
    MUTED,
    PRIVATE,
    PUBLIC,
    REFERENCE,
    SOLID,
    Dash,
    axes,
    chart,
    title_over,
)
from ...threat_model.report.measures import Measure
from .grid import shown
from .points import WORDS, Point, possible

_COLOURS = (PRIVATE, REFERENCE, PUBLIC, ALERT, INK)
_MARKERS = ("o", "s", "^", "D", "v")
_LINES: dict[str, Dash] = {"pooled": DASHED, "alone": DOTTED, "public": (0, (1, 3))}
_ACROSS = {
    "membership": "strongest membership attack, AUC",
    "reconstruction": "strongest reconstruction, share",
}
_PANEL, _TOP, _FOOT, _KEY = 250, 26, 48, 18
_FAR = 0.8


def frontier_figure(points: Sequence[Point], measure: Measure) -> Markup:
    """One panel for epsilon, one for each kind of attack that was tried; under one another where it is narrow."""
    if not any(point.kind in ("private", "without noise") for point in points):
        return Markup("")
    attacks = [name for name in _ACROSS if any(point.attacked(name) for point in points)]
    groups = list(dict.fromkeys(p.group_title for p in points if p.kind in ("private", "without noise")))
    keys = _KEY * (len(groups) if len(groups) > 1 else 0)
    panels = 1 + len(attacks)

    def draw(figure: Figure, wide: bool) -> None:
        width, height = (float(size) * figure.dpi for size in figure.get_size_inches())
        right = 168 if wide else 12
        rows = 1 + (len(attacks) > 0) if wide else panels
        each = (height - keys) / rows
        ax = axes(figure, LEFT, keys + _TOP, right, height - keys - each + _FOOT)
        _against_epsilon(ax, points, groups, measure, wide)
        for i, name in enumerate(attacks):
            if wide:
                half = (width - LEFT) / len(attacks)
                ax = axes(
                    figure,
                    LEFT + i * half,
                    keys + each + _TOP,
                    width - LEFT - (i + 1) * half + 40 * (i + 1 < len(attacks)) + 12,
                    _FOOT,
                )
            else:
                top = keys + (i + 1) * each
                ax = axes(figure, LEFT, top + _TOP, right, height - top - each + _FOOT)
            _against_attack(ax, points, groups, measure, name)
        if keys:
            for i, group in enumerate(groups):
                y = 1 - (i + 0.7) * _KEY / height
                figure.text(LEFT / width, y, f"{'●■▲◆▼'[i % 5]} {group}", fontsize=11, color=_COLOURS[i % 5])

    across = 2 if attacks else 1
    return chart(
        "frontier",
        _spoken(points, measure),
        draw,
        keys + across * _PANEL,
        narrow_height=keys + panels * _PANEL,
    )


def _against_epsilon(
    ax: Axes, points: Sequence[Point], groups: list[str], measure: Measure, wide: bool
) -> None:
    private = [p for p in points if p.kind == "private" and p.epsilon is not None]
    values = sorted({p.epsilon for p in private if p.epsilon is not None})
    places = {epsilon: math.log10(epsilon) for epsilon in values}
    span = max(places.values(), default=0.0) - min(places.values(), default=0.0)
    none = max(places.values(), default=0.0) + max(0.25 * span, 0.2)
    for i, group in enumerate(groups):
        colour, marker = _COLOURS[i % 5], _MARKERS[i % 5]
        own = sorted((p for p in private if p.group_title == group), key=lambda p: p.epsilon or 0.0)
        if own:
            at = [places[p.epsilon] for p in own if p.epsilon is not None]
            ax.plot(at, [p.quality.value for p in own], color=colour, marker=marker, markersize=6)
            for x, p in zip(at, own, strict=True):
                _bar(ax, x, possible(p.quality, measure), colour)
        for p in points:
            if p.kind == "without noise" and p.group_title == group:
                ax.plot(
                    [none], [p.quality.value], color=colour, marker=marker, markersize=7, fillstyle="none"
                )
                _bar(ax, none, possible(p.quality, measure), colour)
    lines = [p for p in points if p.kind in _LINES]
    for p in lines:
        of_group = len(groups) > 1 and p.group_title in groups
        colour = _COLOURS[groups.index(p.group_title) % 5] if of_group else MUTED
        ax.axhline(p.quality.value, color=colour, linewidth=1.2, linestyle=_LINES[p.kind])
    _labels(ax, lines, wide)
    ticks = [*places.values(), none] if any(p.kind == "without noise" for p in points) else [*places.values()]
    ax.set_xticks(ticks, [*map(shown, values), "no noise"][: len(ticks)])
    ax.set_xlabel("epsilon asked for, log scale")
    _quality_scale(ax, measure)


def _labels(ax: Axes, lines: Sequence[Point], wide: bool) -> None:
    """One label a kind of line, beside it or, where there is no room, above it."""
    seen: dict[str, float] = {}
    for p in lines:
        seen.setdefault(p.kind, p.quality.value)
    low, high = ax.get_ylim()
    gap = (high - low) * 0.075
    last = -math.inf
    for kind, value in sorted(seen.items(), key=lambda each: each[1]):
        y = last = max(value, last + gap)
        text = WORDS[kind]  # type: ignore[index]
        if wide:
            ax.annotate(
                text, (1, y), (8, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center_baseline", fontsize=11, color=MUTED,
            )  # fmt: skip
        else:
            ax.annotate(
                text, (0, value), (2, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                fontsize=10, color=MUTED,
            )  # fmt: skip


def _against_attack(
    ax: Axes, points: Sequence[Point], groups: list[str], measure: Measure, name: str
) -> None:
    for p in points:
        found = p.attacked(name)
        if found is None:
            continue
        i = groups.index(p.group_title)
        colour, x = _COLOURS[i % 5], found.recovered
        open_ = "none" if p.kind == "without noise" else "full"
        ax.plot(
            [x.value], [p.quality.value], color=colour, marker=_MARKERS[i % 5], markersize=6, fillstyle=open_
        )
        _bar(ax, x.value, possible(p.quality, measure), colour)
        if math.isfinite(x.low) and math.isfinite(x.high):
            ax.plot([x.low, x.high], [p.quality.value] * 2, color=colour, linewidth=1.2, linestyle=SOLID)
        label = "no noise" if p.kind == "without noise" else f"ε {shown(p.epsilon)}"
        left = x.value > _FAR  # where there is no room on the right
        ax.annotate(
            label, (x.value, p.quality.value), (-6 if left else 6, 5), textcoords="offset points", fontsize=10,
            color=MUTED, ha="right" if left else "left",
        )  # fmt: skip
    shown_ = [found.recovered for p in points if (found := p.attacked(name)) is not None]
    ends = [each.low for each in shown_ if math.isfinite(each.low)]
    ax.set_xlim(
        max(-0.03, min([0.45, *(low - 0.02 for low in ends)])) if name == "membership" else -0.03, 1.02
    )
    ax.set_xlabel(_ACROSS[name])
    _quality_scale(ax, measure)


def _bar(ax: Axes, x: float, value: Estimate, colour: str) -> None:
    if math.isfinite(value.low) and math.isfinite(value.high):
        ax.plot([x, x], [value.low, value.high], color=colour, linewidth=1.2, linestyle=SOLID)


def _quality_scale(ax: Axes, measure: Measure) -> None:
    ax.margins(x=0.05, y=0.14)
    title_over(ax, f"{measure.words}, {measure.direction}")
    if measure.is_share:
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _spoken(points: Sequence[Point], measure: Measure) -> str:
    text = [f"Line chart of {measure.words} by epsilon, {measure.direction}."]
    for p in points:
        group = f"{p.group_title}: " if p.group else ""
        text.append(f"{group}{p.title} {measure.show(p.quality.value)}.")
    return " ".join(text)
