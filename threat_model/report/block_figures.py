"""The figures of each block: its quality under each condition, and its loss over noise levels."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...blocks.diagnostics import BlockDiagnosis, NoiseBin
from .canvas import (
    ALERT,
    GRID,
    LEFT,
    MUTED,
    PRIVATE,
    PUBLIC,
    REFERENCE,
    axes,
    chart,
    legend_above,
    title_at_top,
    title_over,
)
from .diagnosed import Diagnosed
from .measures import three_digits
from .quality_figures import name_blocks, plain_numbers, scale

_ASKED: tuple[tuple[str, Callable[[BlockDiagnosis], float | None], str, str], ...] = (
    ("in the chain", lambda block: block.in_chain, PRIVATE, "o"),
    ("with the right z", lambda block: block.with_z, MUTED, "D"),
    ("without z", lambda block: block.without_z, PUBLIC, "s"),
    ("inputs shuffled", lambda block: block.inputs_shuffled, REFERENCE, "^"),
)


def block_answers(diagnosed: Diagnosed) -> Markup:
    """Every block's quality under each condition; below, how often it follows a wrong z."""
    m, blocks = diagnosed.by_answer, diagnosed.blocks
    # A metric over a whole set and a score of single predictions cannot share a scale.
    questions = _ASKED if diagnosed.by_example else _ASKED[1:]
    asked = [(name, colour, marker, _values(blocks, get)) for name, get, colour, marker in questions]
    asked = [entry for entry in asked if entry[3]]
    label = f"Dots of {m.words}, {m.direction}, by block."
    for b, block in enumerate(blocks):
        told = [f"{name} {m.show(values[b])}" for name, *_, values in asked if b in values]
        label += f" Block {b}: {', '.join(told)}, follows a wrong z {block.follows_wrong_z:.0%}."

    def draw(figure: Figure, wide: bool) -> None:
        height = figure.get_figheight() * 72
        top = 44 if wide else 62
        ax = axes(figure, LEFT, top, 16, 150)
        gap = 0.66 / len(asked)
        for i, (_, colour, marker, values) in enumerate(asked):
            shift = (i - (len(asked) - 1) / 2) * gap
            x, y = zip(*((b + shift, value) for b, value in values.items()), strict=True)
            joined = "-" if marker == "o" else "none"
            ax.plot(x, y, marker=marker, linestyle=joined, linewidth=1, color=colour, markersize=7)
        scale(ax, m, [value for *_, values in asked for value in values.values()])
        name_blocks(ax, len(blocks))
        legend_above(ax, [name for name, *_ in asked], columns=4 if wide else 2)
        title_at_top(figure, f"{m.words}, {m.direction}")
        below = axes(figure, LEFT, height - 100, 16, 30)
        below.bar(range(len(blocks)), [block.follows_wrong_z for block in blocks], 0.28, color=ALERT)
        below.set_ylim(0, 1)
        below.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
        title_over(below, "follows a wrong z")
        name_blocks(below, len(blocks))

    return chart("answers", label, draw, 400, narrow_height=420)


def loss_by_noise(diagnosed: Diagnosed) -> Markup:
    """Loss and gradient norm over the noise of all blocks, from the highest level down; equal mass a step."""
    blocks = diagnosed.blocks
    label = "Lines of loss and gradient norm by noise level, falling. " + " ".join(
        f"Block {block.block}: loss {three_digits(block.by_noise[0].loss)} at its highest noise, "
        f"{three_digits(block.by_noise[-1].loss)} at its lowest."
        for block in blocks
    )
    edges = [block.by_noise[0].high for block in blocks] + [blocks[-1].by_noise[-1].low]

    def draw(figure: Figure, wide: bool) -> None:
        height = figure.get_figheight() * 72
        upper = axes(figure, LEFT, 40, 16, height - 160)
        lower = axes(figure, LEFT, 200, 16, 44)
        _over_noise(upper, "loss", blocks, lambda part: part.loss)
        _over_noise(lower, "gradient norm", blocks, lambda part: part.gradient_norm)
        every = -(-len(edges) // (12 if wide else 6))
        shown = range(0, len(edges), every)
        upper.set_xticks(shown, [""] * len(shown))
        lower.set_xticks(shown, [f"{edges[i]:.3g}" for i in shown])
        for i, text in zip(shown, lower.get_xticklabels(), strict=True):
            if i in (0, len(blocks)):  # kept within the drawing
                text.set_horizontalalignment("left" if i == 0 else "right")
        lower.set_xlabel("noise level, falling, at the blocks' borders")
        for block in range(0, len(blocks), every):
            upper.annotate(
                f"block {block}" if len(blocks) <= 5 else str(block),
                (block + 0.5, 1),
                (0, 18),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                fontsize=11,
            )

    return chart("noise", label, draw, 344)


def _over_noise(
    ax: Axes, title: str, blocks: tuple[BlockDiagnosis, ...], value: Callable[[NoiseBin], float]
) -> None:
    for b, block in enumerate(blocks):
        bins = len(block.by_noise)
        places = [b + (i + 0.5) / bins for i in range(bins)]
        ax.plot(places, [value(part) for part in block.by_noise], marker="o", markersize=3.5, color=PRIVATE)
        if b:
            ax.axvline(b, color=GRID, linewidth=0.8)
    ax.set_xlim(0, len(blocks))
    ax.set_ylim(0, 1.12 * max(value(part) for block in blocks for part in block.by_noise) or 1)
    plain_numbers(ax, 4)
    title_over(ax, title)


def _values(
    blocks: tuple[BlockDiagnosis, ...], get: Callable[[BlockDiagnosis], float | None]
) -> dict[int, float]:
    """Value by block, where there is one."""
    found = {block.block: get(block) for block in blocks}
    return {b: value for b, value in found.items() if value is not None}
