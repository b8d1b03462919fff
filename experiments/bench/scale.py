"""How the time of a simulated round grows with the companies, and what a simulation of a thousand takes.

Two series, both with the whole protocol, noise and ledgers included: all companies take part (5 to 100), and 20 that
are drawn each round from 200 to 1,000. The model, and what a company does in a round, are those of the preset
`digits`. It has too few private digits for a thousand companies, so each draws 200 of the 5,000 for itself, and one
may be at several companies. That changes no time; no quality is measured here. One core, each point in a process of
its own.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...server.events import Event, RoundFinished
from ..presets import load_settings
from ..simulation.preparation import prepare
from ..simulation.simulate import simulate

ALL = (5, 10, 20, 50, 100)
DRAWN = (200, 500, 1000)
PER_ROUND = 20
EXAMPLES = 200
OnProgress = Callable[[str], None]


def measure(
    rounds: int = 10,
    drawn_rounds: int = 100,
    *,
    all_of: Sequence[int] = ALL,
    drawn_of: Sequence[int] = DRAWN,
    figure: Path | None = None,
    on_progress: OnProgress = lambda line: None,
) -> dict[str, Any]:
    """Medians over the rounds after the first, the exponent of time over companies, and the peak of memory.

    `all_of`, `drawn_of`: numbers of companies of the two series; of the second the largest has `drawn_rounds` rounds.
    """
    points = [(n, None, rounds) for n in all_of]
    points += [(n, PER_ROUND, drawn_rounds if n == max(drawn_of) else rounds) for n in drawn_of]
    rows = []
    for n, per_round, count in points:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            row = alone.submit(point, n, per_round, count).result()
        rows.append(row)
        on_progress(
            f"{n:5} companies, {per_round or n:3} a round: {row['seconds_per_round']:.3f} s a round, "
            f"{row['peak_mib']:.0f} MiB"
        )
    found = summary(rows)
    if figure is not None:
        draw(rows, figure)
    return found


def point(companies: int, per_round: int | None, rounds: int) -> dict[str, Any]:
    """One simulation in this process."""
    torch.set_num_threads(1)
    changes = [
        "workers=1",
        "pretraining.steps=1",
        f"companies.count={companies}",
        f"companies.per_round={per_round or 'none'}",
        f"companies.examples={EXAMPLES}",
        f"training.rounds={rounds + 1}",
        f"training.evaluate_every={rounds + 1}",
    ]
    ends: list[tuple[float, float]] = []

    def note(event: Event) -> None:
        if isinstance(event, RoundFinished):
            ends.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run = prepare(load_settings("digits", changes), Path(folder) / "run")
        prepared = time.perf_counter() - started
        simulate(run, [note])
    # The first is the public model's; the first round does what later ones need not, and the last one evaluates.
    pairs = list(pairwise(ends[1:-1]))
    return {
        "companies": companies,
        "per_round": per_round or companies,
        "seconds_per_round": statistics.median(b[0] - a[0] for a, b in pairs),
        "processor_seconds_per_round": statistics.median(b[1] - a[1] for a, b in pairs),
        "prepare_seconds": prepared,
        "peak_mib": peak_mib(),
    }


def peak_mib() -> float:
    """The most memory that this process has had at once, as Linux counts it."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return math.nan


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By number of companies, and what follows from it; an exponent of 1 is linear growth with the companies."""
    every = [row for row in rows if row["per_round"] == row["companies"]]
    drawn = [row for row in rows if row["per_round"] != row["companies"]]
    found: dict[str, Any] = {
        name: {str(row["companies"]): round(row[name], 4) for row in rows}
        for name in ("seconds_per_round", "processor_seconds_per_round", "prepare_seconds", "peak_mib")
    }
    found["exponent"] = exponent(every, "seconds_per_round")
    found["processor_exponent"] = exponent(every, "processor_seconds_per_round")
    alike = next((row for row in every if row["companies"] == PER_ROUND), None)
    if alike is not None and drawn:
        most = drawn[-1]
        n = most["companies"]
        for key, name in (("ratio", "seconds_per_round"), ("processor_ratio", "processor_seconds_per_round")):
            found[f"{key}_{n}_to_{PER_ROUND}"] = round(most[name] / alike[name], 3)
        found[f"peak_mib_{n}"] = round(most["peak_mib"], 1)
    return found


def exponent(rows: Sequence[dict[str, Any]], name: str) -> float:
    """The slope of log time over log companies, by least squares."""
    if len(rows) < 2:
        return math.nan
    x, y = (np.log([row[key] for row in rows]) for key in ("companies", name))
    return round(float(np.polyfit(x, y, 1)[0]), 3)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Seconds a round over the companies of the run, on logarithmic axes: a line of slope one is linear growth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    ax = figure.add_subplot()
    every = [row for row in rows if row["per_round"] == row["companies"]]
    drawn = [row for row in rows if row not in every]
    for label, part in (("all take part", every), (f"{PER_ROUND} drawn each round", drawn)):
        if part:
            n = [row["companies"] for row in part]
            ax.plot(n, [row["seconds_per_round"] for row in part], marker="o", label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ticks = [row["companies"] for row in rows]
    ax.set_xticks(ticks, [f"{count:,}" for count in ticks])
    ax.minorticks_off()
    ax.set_xlabel("companies of the run")
    ax.set_ylabel("seconds a round")
    ax.set_title("A simulated round, digits, one core")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    figure.savefig(path)
