"""How far one example moves a clipped sum, in units of the clip: the bound that every account rests on is 1.

Not of single gradients, but of whole neighbouring sums through the engine that trains: rounding, batch shapes and
orders are in them. Three kinds of attack: gradients arranged against the precision of sums (`arrangements` through
the layers of `sums`), models that amplify a last bit (`last_bit`), and every family (`families`). And real, noised
releases of two neighbours, whose laws must be as close as accounted (`releases`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .cases import Case, all_cases
from .releases import RELEASED, Releases

__all__ = ["Case", "Found", "measure"]


@dataclass(frozen=True)
class Found:
    """The largest movement of a case, and how many neighbouring pairs it was looked for in."""

    attack: str
    name: str
    movement: float
    pairs: int
    worst: str


def measure(
    full: bool, threads: int, on_progress: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """All cases with 1 to `threads` threads; `largest_movement` has to be at most 1."""
    before, rows = torch.get_num_threads(), []
    cases = [(count, case) for count in range(1, threads + 1) for case in all_cases(full)]
    started = time.monotonic()
    weight, done = sum(case.cost for _, case in cases), 0.0
    try:
        for i, (count, case) in enumerate(cases):
            torch.set_num_threads(count)
            found = _found(case)
            rows.append({**asdict(found), "threads": count})
            done += case.cost
            left = (time.monotonic() - started) * (weight / done - 1)
            on_progress(
                f"{i + 1} of {len(cases)}: {found.attack}, {found.name}, {count} threads: "
                f"{found.movement:.5g} ({found.worst}); {left:.0f} s left"
            )
    finally:
        torch.set_num_threads(before)
    releases = []
    for reader, n in RELEASED:
        found_law = Releases(reader, n, noise_multiplier=4.0).verdict(2_000 if full else 400)
        releases.append({"name": f"{reader}, {n - 1} to {n}", **asdict(found_law)})
        on_progress(f"releases, {releases[-1]}")
    worst = max(rows, key=lambda row: float(row["movement"]))
    return {
        "largest_movement": worst["movement"],
        "worst": f"{worst['attack']}: {worst['name']}, {worst['worst']}, {worst['threads']} threads",
        "releases_rejected": sum(bool(row["rejected"]) for row in releases),
        "releases": releases,
        "pairs": sum(int(row["pairs"]) for row in rows),
        "cases": rows,
    }


def _found(case: Case) -> Found:
    largest, worst, pairs = 0.0, "", 0
    for label, movement in case.pairs():
        pairs += 1
        # A sum that is not a number has no bound at all.
        movement = movement if movement == movement else float("inf")
        if movement > largest:
            largest, worst = movement, label
    return Found(case.attack, case.name, largest, pairs, worst)
