"""The noise at which an attack starts to win on a model: what "not found" at another noise has to be read beside."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

GRID = tuple(float(z) for z in np.logspace(-6, 1, 22))  # noise multipliers, three a decade
GAIN = 1.0
"""How much closer than without the release, in dB, counts as winning."""


def wins_at(gain: Callable[[float], float], least: float = GAIN) -> float | None:
    """The largest multiplier of the grid at which `gain(multiplier)` reaches `least`; none: at none of them.

    By bisection, as more noise helps no attack: five evaluations. `gain` is an estimate, so the answer is one too.
    """
    won, lost = -1, len(GRID)
    while lost - won > 1:
        middle = (won + lost) // 2
        if gain(GRID[middle]) >= least:
            won = middle
        else:
            lost = middle
    return GRID[won] if won >= 0 else None
