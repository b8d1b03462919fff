"""Membership as ROC curves on two logarithmic axes, where few false alarms are as wide as many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..tradeoff import GaussianTradeOff
from .canvas import (
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
    axes,
    chart,
    in_lines,
    legend_above,
    title_at_top,
)
from .membership import RATES, Curve

MOST = 4  # curves
_STYLES = ((PRIVATE, SOLID), (PUBLIC, DASHED), (REFERENCE, DOTTED), (ALERT, SOLID))
_LOWEST = 1e-3


def strongest(curves: Sequence[Curve]) -> list[Curve]:
    """Of each attack and view the block where the area is largest; at most `MOST`."""
    best: dict[tuple[str, str], tuple[float, Curve]] = {}
    for curve in curves:
        area = curve.roc().area
        key = (curve.attack, curve.view)
        if key not in best or area > best[key][0]:
            best[key] = (area, curve)
    ordered = sorted(best.values(), key=lambda each: -each[0])
    return [curve for _, curve in ordered][:MOST]


def membership_roc(curves: Sequence[Curve], mu: float | None) -> Markup:
    """`mu`: of one release for an example that is taken for sure, whose ROC no attack on one release passes."""
    shown = strongest(curves)
    label = "Curves of hits against false alarms, both on logarithmic axes. " + " ".join(
        f"{c.attack}, {c.view}, block {c.block}: area {c.roc().area:.3g}." for c in shown
    )
    least = max(1e-4, min(1 / len(c.nulls) for c in shown))

    def draw(drawing: Figure, wide: bool) -> None:
        lines = sum(_lines(curve, wide) for curve in shown) + 1 + (mu is not None)
        ax = axes(drawing, LEFT + 8, 17 * lines + 38, 20, 54)
        names = []
        for curve, (colour, dash) in zip(shown, _STYLES, strict=False):
            alarms, hits = curve.points
            seen = alarms >= 1 / len(curve.nulls) - 1e-12
            ax.plot(alarms[seen], np.maximum(hits[seen], _LOWEST / 10), color=colour, linestyle=dash)
            names.append(in_lines(f"{curve.attack}, block {curve.block}: {curve.view}", 92 if wide else 40))
        x = np.geomspace(least, 1, 200)
        if mu is not None:
            promised = GaussianTradeOff(mu)
            ax.plot(x, [promised.hits(float(a)) for a in x], color=INK, linewidth=1, linestyle=(0, (1, 1)))
            names.append("the most that one release allows any attack")
        ax.plot(x, x, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        names.append("guessing")
        _scales(ax, least)
        legend_above(ax, names)
        title_at_top(drawing, "members found (rate of hits)")

    narrow = sum(_lines(curve, False) - 1 for curve in shown)
    return chart("roc", label, draw, 400, narrow_height=420 + 17 * narrow)


def _lines(curve: Curve, wide: bool) -> int:
    return in_lines(f"{curve.attack}, block {curve.block}: {curve.view}", 92 if wide else 40).count("\n") + 1


def _scales(ax: Axes, least: float) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(least, 1)
    ax.set_ylim(_LOWEST, 1.05)
    ticks = [t for t in (1e-4, 1e-3, 1e-2, 1e-1, 1.0) if t >= least]
    ax.set_xticks(ticks, [_percent(t) for t in ticks])
    ax.set_yticks([1e-3, 1e-2, 1e-1, 1.0], [_percent(t) for t in (1e-3, 1e-2, 1e-1, 1.0)])
    ax.minorticks_off()
    ax.tick_params(axis="x", pad=12)  # clear of the lowest label of the other axis
    for rate in RATES:
        if rate > least:
            ax.axvline(rate, color=MUTED, linewidth=0.6, linestyle=(0, (1, 3)))
    ax.set_xlabel("others taken for members (rate of false alarms)")


def _percent(rate: float) -> str:
    return f"{100 * rate:g}%"
