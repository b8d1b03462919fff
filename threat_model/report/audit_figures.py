"""The figure of an audit: PSNR of each condition in each view, with its interval and its worst case."""

from __future__ import annotations

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .audited import Audited, Row
from .canvas import ALERT, GRID, INK, MUTED, PAPER, PRIVATE, REFERENCE, axes, chart

_ROW, _TITLE, _FOOT = 24, 34, 48
# Above this many decibels all reconstructions look the same: the scale ends here, the printed values do not.
_SCALE_END = 60.0
_STYLES = {
    "control": (REFERENCE, "s"),
    "released": (ALERT, "D"),
    "prior": (PRIVATE, "o"),
    "random": (MUTED, "^"),
}


def psnr_by_view(audit: Audited) -> Markup:
    """PSNR of every row of every view on one scale: mean, 95% interval, worst (best recovered) case."""
    views = [(f"({view.letter}) {view.title}", view.rows) for view in audit.views]
    label = "Dots with intervals of PSNR in decibels. " + " ".join(
        f"{title}: " + ", ".join(f"{row.label} {row.scores['psnr'].mean:.1f}" for row in rows) + "."
        for title, rows in views
    )
    height = sum(_TITLE + _ROW * len(rows) for _, rows in views) + _FOOT
    scores = [row.scores["psnr"] for _, rows in views for row in rows]
    low = min(0.0, *(s.low for s in scores))
    high = min(_SCALE_END, max(audit.exact_psnr + 5, *(s.worst for s in scores)))

    def draw(figure: Figure, wide: bool) -> None:
        left, right = (196, 64) if wide else (84, 50)
        ax = axes(figure, left, 4, right, _FOOT - 4)
        ax.grid(False)
        ax.grid(axis="x", color=GRID, linewidth=0.8)
        ax.set_xlim(low, high + 1)
        ax.set_ylim(height - _FOOT, 0)
        ax.set_yticks([])
        ax.axvline(audit.exact_psnr, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        y = 0.0
        for title, rows in views:
            _text(
                ax,
                title if wide else _shortened(title, 52),
                8 - left,
                y + _TITLE - 13,
                "left",
                INK,
                12 if wide else 11,
            )
            y += _TITLE
            for row in rows:
                _row(ax, row, y + _ROW / 2 - 4, high, wide)
                y += _ROW
        ax.set_xlabel(
            "PSNR in dB: higher is closer" if not wide else "PSNR in dB: higher is closer to the original"
        )

    return chart("psnr", label, draw, height)


def _row(ax: Axes, row: Row, y: float, end: float, wide: bool) -> None:
    score = row.scores["psnr"]
    colour, marker = _STYLES[row.condition]
    _text(ax, row.label if wide else row.short, -8, y, "right", MUTED, 11)
    low, high, worst = (min(value, end) for value in (score.low, score.high, score.worst))
    ax.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
    if score.mean > end:
        ax.plot([end], [y], marker=">", color=colour, markersize=7, zorder=3)
    else:
        ax.plot([worst], [y], marker="|", color=colour, markersize=12, markeredgewidth=1.6)
        ax.plot([score.mean], [y], marker=marker, color=colour, markersize=7, zorder=3)
    ax.annotate(
        f"{score.mean:.1f}",
        (1, y),
        (8, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center_baseline",
        fontsize=11,
        color=INK,
    )


def _text(ax: Axes, text: str, offset: float, y: float, side: str, colour: str, size: float) -> None:
    """Text at a distance in pixels from the left edge of the scale."""
    ax.annotate(
        text,
        (0, y),
        (offset, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha=side,
        va="center_baseline",
        fontsize=size,
        color=colour,
        annotation_clip=False,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1},
    )


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
