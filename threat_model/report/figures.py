"""The figures of privacy spent and of dropouts. The report also gives their content in tables or text."""

from __future__ import annotations

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .canvas import (
    ALERT,
    DASHED,
    DOTTED,
    GRID,
    INK,
    NARROW,
    PAPER,
    PRIVATE,
    SOLID,
    WIDE,
    at_end,
    axes,
    chart,
    spread,
    whole_numbers,
)
from .facts import Absence, Facts
from .judgement import number
from .spending import Spending

MOST_ROWS = 30
_LETTERS = {"key exchange": "K", "training": "T", "confirmation": "C", "unmasking": "U"}


def epsilon_by_company(spending: tuple[Spending, ...]) -> Markup:
    """Each ledger's epsilon over the rounds, and the ceiling; companies with the same curve share a line."""
    groups: dict[tuple[tuple[int, float], ...], list[Spending]] = {}
    for s in spending:
        groups.setdefault(s.curve, []).append(s)
    label = "Step chart of epsilon by round. " + "; ".join(
        f"{s.company} ends at {number(s.curve[-1][1])} of {s.ceiling:g}" for s in spending[:12]
    )
    last = max(round_ for s in spending for round_, _ in s.curve)

    def draw(figure: Figure, wide: bool) -> None:
        ax = axes(figure, 44, 16, 150 if wide else 20, 44)
        ceilings = sorted({s.ceiling for s in spending})
        top = max(*ceilings, *(e for s in spending for _, e in s.curve))
        dashes = [SOLID, DASHED, DOTTED]
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
        whole_numbers(ax, 0, last, wide)
        ax.set_xlabel("round")
        ax.set_ylabel("epsilon (one example, add or remove)", fontsize=11)
        if wide and len(ends) <= 14:
            pixel = top * 1.06 / (figure.get_figheight() * 72 - 60)
            for (name, colour, value), y in zip(
                ends, spread([v for *_, v in ends], 15 * pixel, 0, top * 1.06), strict=True
            ):
                at_end(ax, y, f"{name} {number(value)}" if colour != ALERT else f"{name} {value:g}", colour)
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
        whole_numbers(ax, 1, rounds, wide)
        ax.set_xlabel("round")

    return chart("absences", label, draw, 64 + row * len(names))


def _cell(ax: Axes, missing: Absence, round_: int, y: int, cell: float) -> None:
    """A filled cell with its phase's letter; hollow where the update was in the sum."""
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
