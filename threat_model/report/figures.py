"""The drawings of a run: accuracy, epsilon, absences. What they show also stands in a table or in words."""

from __future__ import annotations

import math

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .canvas import (
    ALERT,
    GRID,
    INK,
    MUTED,
    NARROW,
    PAPER,
    PRIVATE,
    PUBLIC,
    REFERENCE,
    WIDE,
    axes,
    chart,
    spread,
)
from .facts import Absence, Facts, Utility
from .spending import Spending

MOST_ROWS = 30
_Dash = str | tuple[float, tuple[float, ...]]
_SOLID: _Dash = "solid"
_DASHED: _Dash = (0, (5, 2))
_DOTTED: _Dash = (0, (1.5, 1.5))
_LETTERS = {"key exchange": "K", "training": "T", "unmasking": "U"}


def accuracy_by_round(utility: Utility, aborted: dict[int, str]) -> Markup:
    """Held-out private and public accuracy of the whole chain, against the public model it started from."""
    first, last = utility.first, utility.last
    label = (
        f"Line chart of accuracy by round. Held-out private data: {first.heldout[-1]:.1%} at round "
        f"{first.round}, {last.heldout[-1]:.1%} at round {last.round}."
    )
    if last.public:
        label += f" Public data: {first.public[-1]:.1%} to {last.public[-1]:.1%}."

    def draw(figure: Figure, wide: bool) -> None:
        series = [("private, held out", PRIVATE, _SOLID, [(p.round, p.heldout[-1]) for p in utility.points])]
        if last.public:
            series.append(("public data", PUBLIC, _DASHED, [(p.round, p.public[-1]) for p in utility.points]))
        if utility.reference:
            twin = [(p.round, p.heldout[-1]) for p in utility.reference]
            series.append(("private, no noise", REFERENCE, _DOTTED, twin))
        ax = axes(figure, 44, 14 if wide else 18 * len(series) + 30, 180 if wide else 16, 44)
        ends = []
        top = 0.0
        for name, colour, dash, line in series:
            rounds, values = zip(*line, strict=True)
            top = max(top, *values)
            ax.plot(rounds, values, color=colour, linestyle=dash)
            ends.append((name, colour, values[-1]))
        base = first.heldout[-1]
        ax.axhline(base, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        _percent(ax, top)
        ax.set_xlim(first.round, max(last.round, first.round + 1))
        ax.set_xlabel("round")
        _whole_numbers(ax, first.round, last.round, wide)
        low, high = ax.get_ylim()
        for round_ in aborted:
            ax.plot([round_], [low], marker="x", color=ALERT, markersize=6, clip_on=False)
        ends.append(("public model at start", MUTED, base))
        if wide:
            pixel = (high - low) / (figure.get_figheight() * 72 - 58)
            places = spread([v for *_, v in ends], 15 * pixel, low, high)
            for (name, colour, value), y in zip(ends, places, strict=True):
                _at_end(ax, y, f"{name} {value:.0%}", colour)
        else:
            _legend_above(ax, ends)

    return chart("accuracy", label, draw, 300, narrow_height=330)


def accuracy_by_block(utility: Utility) -> Markup:
    """Held-out accuracy after each block of the chain, first round against last."""
    first, last = utility.first, utility.last
    losing = dict(utility.losing_blocks())
    label = "Accuracy on held-out private data after each block: " + "; ".join(
        f"block {b} {before:.1%} at round {first.round}, {after:.1%} at round {last.round}"
        for b, (before, after) in enumerate(zip(first.heldout, last.heldout, strict=True))
    )

    def draw(figure: Figure, wide: bool) -> None:
        ax = axes(figure, 44, 20, 24, 30)
        blocks = list(range(len(last.heldout)))
        bars = 0.28
        for points, colour, shift in ((first.heldout, MUTED, -bars / 2), (last.heldout, PRIVATE, bars / 2)):
            ax.bar(
                [b + shift for b in blocks],
                points,
                bars * 0.94,
                color=PAPER if colour == MUTED else colour,
                edgecolor=colour,
                linewidth=1.2,
            )
            for b, value in zip(blocks, points, strict=True):
                if len(blocks) <= (12 if wide else 5):
                    mark = " ▼" if colour == PRIVATE and b in losing else ""
                    ax.annotate(
                        f"{value:.0%}{mark}",
                        (b + shift, value),
                        (0, 3),
                        textcoords="offset points",
                        ha="center",
                        fontsize=11,
                        color=ALERT if mark else INK,
                    )
        _percent(ax, max(*first.heldout, *last.heldout))
        ax.set_xlim(-0.6, len(blocks) - 0.4)
        ax.set_xticks(blocks, [f"block {b}" if len(blocks) <= 8 else str(b) for b in blocks])

    return chart("blocks", label, draw, 230)


def epsilon_by_company(spending: tuple[Spending, ...]) -> Markup:
    """Each ledger's epsilon over the rounds, and the ceiling; companies with the same curve share a line."""
    groups: dict[tuple[tuple[int, float], ...], list[Spending]] = {}
    for s in spending:
        groups.setdefault(s.curve, []).append(s)
    label = "Step chart of epsilon by round. " + "; ".join(
        f"{s.company} ends at {s.curve[-1][1]:.3g} of {s.ceiling:g}" for s in spending[:12]
    )
    last = max(round_ for s in spending for round_, _ in s.curve)

    def draw(figure: Figure, wide: bool) -> None:
        ax = axes(figure, 44, 16, 150 if wide else 20, 44)
        ceilings = sorted({s.ceiling for s in spending})
        top = max(*ceilings, *(e for s in spending for _, e in s.curve))
        dashes = [_SOLID, _DASHED, _DOTTED]
        ends = []
        for i, (curve, members) in enumerate(groups.items()):
            rounds = [*(r for r, _ in curve), last]
            values = [*(e for _, e in curve), curve[-1][1]]
            ax.step(rounds, values, where="post", color=PRIVATE, linestyle=dashes[i % len(dashes)])
            ends.append((_members(members, len(spending)), PRIVATE, curve[-1][1]))
        for ceiling in ceilings:
            ax.axhline(ceiling, color=ALERT, linewidth=1.2, linestyle=(0, (4, 3)))
            name = "ceiling" if len(ceilings) == 1 else f"ceiling {ceiling:g}"
            ends.append((name, ALERT, ceiling))
        ax.set_ylim(0, top * 1.06)
        ax.set_xlim(0, max(last, 1))
        _whole_numbers(ax, 0, last, wide)
        ax.set_xlabel("round")
        ax.set_ylabel("epsilon (one example, add or remove)", fontsize=11)
        if wide and len(ends) <= 14:
            pixel = top * 1.06 / (figure.get_figheight() * 72 - 60)
            for (name, colour, value), y in zip(
                ends, spread([v for *_, v in ends], 15 * pixel, 0, top * 1.06), strict=True
            ):
                _at_end(ax, y, f"{name} {value:.3g}" if colour != ALERT else f"{name} {value:g}", colour)
        elif not wide:
            ax.annotate(
                f"ceiling {ceilings[-1]:g}",
                (0, ceilings[-1]),
                (4, -13),
                textcoords="offset points",
                color=ALERT,
                fontsize=11,
            )

    return chart("epsilon", label, draw, 280)


def absences(facts: Facts) -> Markup:
    """Company by round: who was missing, from which phase on; rounds that were aborted."""
    names = list(facts.companies)
    if len(names) > MOST_ROWS:
        names = sorted({a.company for a in facts.absences}, key=names.index)[:MOST_ROWS]
    where = {(a.company, a.round): a for a in facts.absences}
    rounds = facts.rounds_done
    label = (
        f"Grid of {len(names)} companies by {rounds} rounds: {len(facts.absences)} absences, "
        f"{len(facts.aborted)} aborted rounds. The table below lists them."
    )
    row = 20

    def draw(figure: Figure, wide: bool) -> None:
        longest = max(len(name) for name in names)
        left = min(6.6 * longest + 12, 200 if wide else 110)
        ax = axes(figure, left, 24, 14, 40)
        ax.grid(False)
        cell = ((WIDE if wide else NARROW) - left - 14) / rounds
        for round_ in facts.aborted:
            ax.add_patch(
                Rectangle((round_ - 0.5, -0.5), 1, len(names), facecolor=GRID, edgecolor="none", zorder=0)
            )
            if cell >= 7:
                ax.text(round_, -0.75, "×", color=ALERT, ha="center", va="bottom", fontsize=13)
            else:
                ax.plot([round_], [-0.8], marker="x", color=ALERT, markersize=4, clip_on=False)
        for y, name in enumerate(names):
            ax.plot([0.5, rounds + 0.5], [y, y], color=GRID, linewidth=1, zorder=0)
            present = [r for r in range(1, rounds + 1) if (name, r) not in where and cell >= 5]
            ax.plot(present, [y] * len(present), "o", markersize=min(cell * 0.4, 5), color=PRIVATE)
            for round_ in range(1, rounds + 1):
                if (name, round_) in where:
                    _cell(ax, where[name, round_], round_, y, cell)
        ax.set_xlim(0.5, rounds + 0.5)
        ax.set_ylim(len(names) - 0.5, -0.5)
        width = int((left - 12) / 6.6)
        ax.set_yticks(range(len(names)), [n if len(n) <= width else n[: width - 1] + "…" for n in names])
        ax.tick_params(axis="y", colors=INK)
        _whole_numbers(ax, 1, rounds, wide)
        ax.set_xlabel("round")

    return chart("absences", label, draw, 64 + row * len(names))


def _cell(ax: Axes, missing: Absence, round_: int, y: int, cell: float) -> None:
    """A filled cell with its phase's letter; hollow where the update had counted all the same."""
    size = 0.84 if cell >= 5 else 1.0
    ax.add_patch(
        Rectangle(
            (round_ - size / 2, y - 0.4),
            size,
            0.8,
            facecolor=PAPER if missing.counted else ALERT,
            edgecolor=ALERT,
            linewidth=1 if cell >= 5 else 0.4,
        )
    )
    if cell >= 8:
        colour = ALERT if missing.counted else PAPER
        letter = _LETTERS.get(missing.phase, "?")
        ax.text(round_, y, letter, color=colour, ha="center", va="center_baseline", fontsize=min(11, cell))


def _members(members: list[Spending], total: int) -> str:
    if len(members) == total:
        return f"all {total} companies" if total > 1 else members[0].company
    if len(members) > 1:
        return f"{len(members)} companies"
    name = members[0].company
    return name if len(name) <= 14 else name[:13] + "…"


def _percent(ax: Axes, top: float) -> None:
    limit = min(1.0, math.ceil((top + 0.04) * 10) / 10)
    ax.set_ylim(0, limit)
    step = 0.2 if limit > 0.5 else 0.1 if limit > 0.2 else 0.05
    ticks = [i * step for i in range(round(limit / step) + 1)]
    ax.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])


def _whole_numbers(ax: Axes, first: int, last: int, wide: bool) -> None:
    """A few round numbers, always with the first and the last."""
    room = 10 if wide else 5
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if (last - first) / s <= room)
    ticks = [t for t in range(0, last + 1, step) if first < t and last - t >= step * 0.6]
    ax.set_xticks(sorted({first, *ticks, last}))


def _at_end(ax: Axes, y: float, text: str, colour: str) -> None:
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


def _legend_above(ax: Axes, ends: list[tuple[str, str, float]]) -> None:
    handles = list(ax.get_lines())[: len(ends)]
    ax.legend(
        handles,
        [f"{name} {value:.0%}" for name, _, value in ends],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=1,
        frameon=False,
        fontsize=11,
        borderaxespad=0,
    )
