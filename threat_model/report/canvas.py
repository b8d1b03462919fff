"""From a matplotlib figure to an SVG element in the page: with the page's theme, a label, and reproducible bytes.

Colours are named by meaning. While drawing each is a placeholder that no figure uses otherwise; in the page it
becomes a CSS variable, so that one figure serves light, dark and print. Text stays text, in the page's own typeface;
its layout is computed with matplotlib's bundled (wider) one.
"""

from __future__ import annotations

import io
import re
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

INK, MUTED, GRID = "#0a0001", "#0a0002", "#0a0003"
PRIVATE, PUBLIC, REFERENCE, ALERT, PAPER = "#0a0004", "#0a0005", "#0a0006", "#0a0007", "#0a0008"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PRIVATE: "private",
    PUBLIC: "public",
    REFERENCE: "reference",
    ALERT: "alert",
    PAPER: "paper",
}
_COLOUR = re.compile("|".join(_VARIABLES))
_TYPEFACE = re.compile(r"font-family:[^;]*;?")
_SETTINGS: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    # Company names and settings are other people's text: a dollar sign must not start a formula.
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}

WIDE, NARROW = 720, 350
# Room for tick labels left of a scale, in pixels.
LEFT = 48
Dash = str | tuple[float, tuple[float, ...]]
SOLID: Dash = "solid"
DASHED: Dash = (0, (5, 2))
DOTTED: Dash = (0, (1.5, 1.5))
Draw = Callable[[Figure, bool], None]


def chart(name: str, label: str, draw: Draw, height: int, *, narrow_height: int | None = None) -> Markup:
    """The figure in a wide and a narrow version; the page shows the one that fits.

    `draw(figure, wide)` draws on a figure measured in pixels; `label` is the text for screen readers.
    """
    return Markup("").join(
        _svg(f"{name}-{kind}", label, draw, kind == "wide", width, pixels)
        for kind, width, pixels in (("wide", WIDE, height), ("narrow", NARROW, narrow_height or height))
    )


def axes(figure: Figure, left: float, top: float, right: float, bottom: float) -> Axes:
    """Axes with margins in pixels, with only a base line and horizontal grid lines."""
    width, height = (float(size) * figure.dpi for size in figure.get_size_inches())
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    ax = figure.add_axes(box)
    for side in ("left", "right", "top"):
        ax.spines[side].set_visible(False)
    ax.tick_params(length=0)
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def spread(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, at least `gap` apart, for labels at the ends of lines."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [min(max(wanted[i], low), high) for i in order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    overshoot = placed[-1] - high if placed else 0.0
    for i in range(len(placed) - 1, -1, -1):
        if overshoot <= 0:
            break
        placed[i] -= overshoot
        overshoot = gap - (placed[i] - placed[i - 1]) if i else 0.0
    result = [0.0] * len(wanted)
    for position, i in zip(placed, order, strict=True):
        result[i] = position
    return result


def whole_numbers(ax: Axes, first: int, last: int, wide: bool) -> None:
    """A few round numbers, always with the first and the last."""
    room = 10 if wide else 5
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if (last - first) / s <= room)
    ticks = [t for t in range(0, last + 1, step) if first < t and last - t >= step * 0.6]
    ax.set_xticks(sorted({first, *ticks, last}))


def at_end(ax: Axes, y: float, text: str, colour: str) -> None:
    """A label beside the end of a line."""
    ax.annotate(
        text,
        (1, y),
        (8, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center_baseline",
        fontsize=12,
        color=colour,
    )


def legend_above(ax: Axes, labels: list[str], columns: int = 1) -> None:
    """A legend of the first lines, in their order, above the axes."""
    ax.legend(
        list(ax.get_lines())[: len(labels)],
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        frameon=False,
        fontsize=11,
        borderaxespad=0,
        handlelength=1.8,
        columnspacing=1.4,
    )


def title_at_top(figure: Figure, text: str) -> None:
    """The title of the vertical scale, at the top of the figure."""
    width, height = (float(size) * figure.dpi for size in figure.get_size_inches())
    figure.text(LEFT / width, 1 - 11 / height, text, fontsize=11, color=MUTED)


def title_over(ax: Axes, text: str) -> None:
    """The title of the vertical scale, just above the axes."""
    ax.annotate(
        text, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=11, color=MUTED
    )


def _svg(name: str, label: str, draw: Draw, wide: bool, width: int, height: int) -> Markup:
    with _drawing(name):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        draw(figure, wide)
        out = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    root = ET.fromstring(out.getvalue())
    _tidy(root)
    root.attrib.clear()
    root.attrib.update(
        {
            "class": f"chart {'wide' if wide else 'narrow'}",
            "viewBox": f"0 0 {width} {height}",
            "role": "img",
            "aria-label": label,
        }
    )
    return Markup(ET.tostring(root, encoding="unicode"))


@contextmanager
def _drawing(name: str) -> Iterator[None]:
    # With the salt, ids differ between the figures of a page, and are equal in every report.
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        yield


def _tidy(root: ET.Element) -> None:
    """Remove what conflicts when several figures are in one page: namespaces, group names, a global style sheet."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}style") or child.tag.endswith("}metadata"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.text = (element.text or "").strip() or None
        element.tail = None
        if element.tag == "g":
            element.attrib.pop("id", None)
        for key in list(element.attrib):
            value = element.attrib.pop(key)
            if key == "style":
                value = _COLOUR.sub(lambda found: f"var(--{_VARIABLES[found[0]]})", _TYPEFACE.sub("", value))
            if key == "d":
                value = " ".join(value.split())
            if not (key == "transform" and value.startswith("rotate(-0 ")):
                element.set(key.rpartition("}")[2], value)


def in_lines(text: str, most: int) -> str:
    """Broken between words, so that no line has more characters."""
    return "\n".join(textwrap.wrap(text, most))
