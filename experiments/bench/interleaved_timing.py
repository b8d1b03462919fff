"""Timing alternatives in turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

_WARM_UP = 2  # allocator and optimisers


def median_seconds(
    jobs: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each job over `repeats` turns, after two that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(repeats + _WARM_UP):
        for name, job in jobs.items():
            started = clock()
            job()
            if repeat >= _WARM_UP:
                seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
