"""Series in time order: two rows of one time, rows between two steps, gaps, and a regular grid where told."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ....settings.contract import SeriesContract
from ..findings import Findings, counted
from . import steps
from .steps import Step
from .times import Ticks, Times, Wrong, shown

Values = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Series:
    """`values` (C, T), NaN where one is missing; `first` (T,): a row that does not follow the one before by one step.

    `times` (T,) by the clock, none where the rows tell no time; `rows` (T,): their numbers in the table, from 1.
    """

    name: str
    values: Values
    first: Mask
    rows: Ticks
    times: Times | None = None
    wall: Ticks | None = None

    def channel(self, index: int) -> Series:
        return replace(self, values=self.values[index : index + 1])

    def at(self, chosen: npt.NDArray[np.int64] | slice) -> Series:
        """Some of the rows."""
        times = None if self.times is None else replace(self.times, instants=self.times.instants[chosen])
        wall = None if self.wall is None else self.wall[chosen]
        return Series(self.name, self.values[:, chosen], self.first[chosen], self.rows[chosen], times, wall)


def in_order(
    series: Series, contract: SeriesContract, column: str, findings: Findings, wrong: Wrong
) -> Series:
    """In time order, each time once. Raises: InputError naming the row that is not."""
    if series.times is None:
        return series
    later = np.diff(series.times.instants)
    if (later < 0).any():
        at = int(np.argmax(later < 0)) + 1
        rule = (
            f"rows must be in time order, row {series.rows[at]} of {column} is earlier than the one before it"
        )
        help_ = 'order = "sort", series where several stand in one table, or zone where clocks were put back'
        raise wrong(f"{rule}; say in a contract {help_}")
    if not (later == 0).any():
        return series
    same = np.concatenate([[False], later == 0])
    if contract.twice == "refuse" and contract.resample is not None:
        return series  # they fall into one step
    if contract.twice == "refuse":
        row = series.rows[int(np.argmax(same))]
        rule = (
            f"rows must be in time order, and row {row} of {column} has the time of the one before it again"
        )
        help_ = (
            'twice = "first", "last" or "mean", zone = "Europe/Berlin" for an hour twice in autumn, or series'
        )
        raise wrong(f"{rule}; say in a contract {help_}")
    findings.note(f"of rows with the same time, {_KEPT[contract.twice]}")
    begins = np.flatnonzero(~same)
    if contract.twice == "mean":
        return replace(series.at(begins), values=_reduced(series.values, begins, "mean"))
    ends = np.concatenate([begins[1:], [len(same)]]) - 1
    return series.at(begins if contract.twice == "first" else ends)


_KEPT = {"first": "the first is kept", "last": "the last is kept", "mean": "the mean is taken"}


def _reduced(values: Values, begins: npt.NDArray[np.int64], how: str) -> Values:
    """(C, T) -> (C, G): runs of rows that begin at `begins`, each as one; NaN only where all of a run is missing."""
    if how in ("first", "last"):
        import pandas as pd

        run = np.zeros(values.shape[1], np.int64)
        run[begins[1:]] = 1
        grouped = pd.DataFrame(values.T).groupby(np.cumsum(run))
        return np.asarray((grouped.first() if how == "first" else grouped.last()).to_numpy().T)
    there = np.isfinite(values)
    number = np.add.reduceat(there, begins, axis=1, dtype=np.float64)
    total = np.add.reduceat(np.where(there, values, 0.0), begins, axis=1)
    with np.errstate(invalid="ignore"):
        found: Values = np.where(number > 0, total / (number if how == "mean" else 1.0), np.nan)
    return found


def found_step(series: list[Series]) -> Step | None:
    """By the clock on the wall where a step is a day or longer, and the zone is known."""
    told = [one for one in series if one.times is not None and one.wall is not None]
    step = steps.found([one.wall for one in told if one.wall is not None], any(_counted(one) for one in told))
    if step is None or step.by_the_clock:
        return step
    return steps.found(
        [one.times.instants for one in told if one.times is not None], any(map(_counted, told))
    )


def _counted(series: Series) -> bool:
    return series.times is not None and series.times.counted


def ticks(series: Series, step: Step) -> Ticks:
    assert series.times is not None
    assert series.wall is not None
    return series.wall if step.by_the_clock else series.times.instants


def resampled(series: Series, step: Step, how: str, findings: Findings) -> Series:
    """One value a step, of the rows that fall into it; a step without a row is a gap."""
    bins = step.bins(ticks(series, step))
    begins = np.flatnonzero(np.append(True, np.diff(bins) != 0))
    findings.note(f"rows are brought to one a {step}: the {how} of those that fall into it")
    rows = replace(series.at(begins), values=_reduced(series.values, begins, how))
    return replace(rows, first=np.append(True, np.diff(bins[begins]) != 1))


def apart(series: Series, step: Step, wrong: Wrong) -> Series:
    """Mark the rows that are not one step after the one before. Raises: InputError naming one between two steps."""
    count = step.between(ticks(series, step))
    off = ~np.isfinite(count)
    if off.any():
        row, others = series.rows[int(np.argmax(off)) + 1], int(off.sum()) - 1
        rule = f"row {row} is no whole number of steps ({step}) after the one before it"
        rule += f", nor {'is 1 other row' if others == 1 else f'are {others:,} other rows'}" if others else ""
        raise wrong(f'{rule}; say step (as "1h", or "row"), resample = "mean", or zone, in a contract')
    return replace(series, first=np.append(True, count != 1))


def note_gaps(series: list[Series], findings: Findings) -> None:
    gaps = [int(one.first[1:].sum()) for one in series]
    if sum(gaps):
        whose = f", in {sum(gap > 0 for gap in gaps):,} of {len(series):,} series" if len(series) > 1 else ""
        findings.note(f"{counted(sum(gaps), 'gap')} between rows{whose}; no window crosses one")


def span(series: list[Series]) -> str | None:
    """From the first to the last time."""
    told = [(one.wall, _counted(one)) for one in series if one.wall is not None and len(one.wall)]
    if not told:
        return None
    first, last = min(int(wall[0]) for wall, _ in told), max(int(wall[-1]) for wall, _ in told)
    return f"{shown(first, told[0][1])} to {shown(last, told[0][1])}"
