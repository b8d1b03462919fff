"""From a table, one row a time, to series whose neighbouring values are one step apart.

What a row means is taken from the contract; without one, the column that holds times is found by its form, rows must
be in order, and a missing row is a gap. Nothing is filled in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...settings import DataSource
from ...settings.contract import SeriesContract
from . import steps
from .findings import Findings, counted
from .frames import CSV, SUFFIXES, inner_suffix, is_database, read_frame
from .steps import Step
from .times import Ticks, Times, Wrong, columns_of_times, empty_times, local, read_times, shown

if TYPE_CHECKING:
    import pandas as pd

Values = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
_ETT_DAYS = 20 * 30
_DECIMAL_COMMA = re.compile(r"[-+]?[\d.]*\d,\d+")


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


@dataclass(frozen=True)
class Read:
    """`names`: the columns of values. `step`: none where no column tells the time."""

    series: list[Series]
    names: list[str]
    step: Step | None = None


def read_series(field: str, source: DataSource, contract: SeriesContract | None, findings: Findings) -> Read:
    """All series of a table. Raises: InputError naming the source, the row or column, and what would mend it."""
    wrong: Wrong = partial(InputError, field, source.source)
    frame = _frame(field, source.source, contract, findings)
    names = None if source.columns is None else list(source.columns)
    if contract is not None:
        if names is not None and contract.channels is not None and tuple(names) != contract.channels:
            findings.note(
                f"{field.removesuffix('.source')}.columns is not used: the contract names the channels"
            )
        names = None if contract.channels is None else list(contract.channels)
    told = contract or SeriesContract()
    for name in (*told.times, *([told.series] if told.series else [])):
        if name not in frame.columns:
            raise wrong(f"column {name!r} is missing; there are {', '.join(map(repr, frame.columns[:12]))}")
    times = told.times or _likely_times(frame, names, told, findings)
    names = _channels(field, frame, names, {*times, *([told.series] if told.series else [])}, source, wrong)
    frame = _without_empty(frame, times, told, findings, wrong)
    values = _values(frame, names, told, findings, wrong)
    when = read_times(wrong, frame, times, told, findings) if times else None
    series = [
        _in_order(one, told, " and ".join(map(repr, times)), findings, wrong)
        for one in _by_name(frame, values, when, told, wrong)
    ]
    if when is None:
        findings.note("no column of times: rows are taken as in order and evenly spaced")
        return Read(series, names)
    step = steps.told(told.step) if told.step is not None else _found_step(series, findings)
    if step is not None and told.resample is not None:
        series = [_resampled(one, step, told.resample, findings) for one in series]
    series = [_apart(one, step, findings, wrong) for one in series]
    return Read(series, names, step)


def _frame(field: str, source: str, contract: SeriesContract | None, findings: Findings) -> pd.DataFrame:
    import pandas as pd

    path = Path(source)
    if not is_database(source) and path.is_file() and inner_suffix(path) not in (*SUFFIXES, *CSV):
        raise InputError(field, source, f"expected a table: {', '.join(SUFFIXES)}")
    frame = read_frame(field, source, contract or SeriesContract())
    odd = [name for name in frame.columns if ";" in name or "\t" in name]
    if odd:
        rule = (
            f'column {odd[0]!r} holds a separator in its name; say separator = ";" or another in a contract'
        )
        raise InputError(field, source, rule)
    if isinstance(frame.index, pd.DatetimeIndex):  # a table whose index has no name
        frame = frame.reset_index(names="time")
    if len(frame) == 0:
        raise InputError(field, source, "no rows")
    ett = re.fullmatch(r"ETT([hm])[12]\.csv", path.name)
    if (
        ett and contract is None
    ):  # Zhou et al. 2021 (Informer): an hour or a quarter a row, of which 20 months are used
        frame = frame.iloc[: _ETT_DAYS * (24 if ett[1] == "h" else 96)]
        findings.note("of ETT, the 20 months are used that the literature uses")
    return frame


def _likely_times(
    frame: pd.DataFrame, names: list[str] | None, contract: SeriesContract, findings: Findings
) -> tuple[str, ...]:
    taken = {*(names or ()), contract.series}
    likely = [found for found in columns_of_times(frame) if not taken & set(found)]
    if not likely:
        return ()
    shown = [" and ".join(map(repr, found)) for found in likely]
    findings.note(f"times are read from {shown[0]}")
    if len(likely) > 1:
        findings.note(f"{', '.join(shown[1:])} could tell the time too; name the right one in a contract")
    return likely[0]


def _channels(
    field: str,
    frame: pd.DataFrame,
    names: list[str] | None,
    others: set[str],
    source: DataSource,
    wrong: Wrong,
) -> list[str]:
    """The columns named, else all but those that tell times or series; each must hold numbers."""
    by_columns = f"{field}.columns" if source.columns is not None else field
    spare = {name for found in columns_of_times(frame) for name in found} if names is None else set()
    for name in names or ():
        if name not in frame.columns:
            raise InputError(by_columns, name, "no such column")
    chosen = [name for name in frame.columns if name not in others | spare] if names is None else names
    for name in chosen:
        if not _is_number(frame[name]):
            rule = f"expected numbers in this column{_why_text(frame[name])}"
            if names is None:
                raise wrong(f"column {name!r}: {rule}; name the columns of values as channels in a contract")
            raise InputError(by_columns, name, rule)
    return list(chosen)


def _is_number(column: pd.Series[object]) -> bool:
    import pandas as pd

    empty = column.isna().all()
    return bool(
        pd.api.types.is_numeric_dtype(column)
        or (empty and column.dtype == object)
        or pd.api.types.infer_dtype(column, skipna=True) == "decimal"
    )


def _why_text(column: pd.Series[object]) -> str:
    cells = [cell for cell in column if isinstance(cell, str)][:1000]
    commas = sum(_DECIMAL_COMMA.fullmatch(cell.strip()) is not None for cell in cells)
    return ' (it has decimal commas: say decimal = ",")' if cells and commas > 0.5 * len(cells) else ""


def _without_empty(
    frame: pd.DataFrame, times: tuple[str, ...], contract: SeriesContract, findings: Findings, wrong: Wrong
) -> pd.DataFrame:
    """Rows numbered from 1; those without a time or a series refused, or left out where the contract allows gaps."""
    import pandas as pd

    frame = frame.set_axis(pd.RangeIndex(1, len(frame) + 1))
    columns = (*times, *([contract.series] if contract.series else []))
    empty = empty_times(frame, columns)
    if empty.any() and contract.missing == "refuse":
        row = int(np.argmax(empty)) + 1
        name = next(n for n in columns if empty_times(frame.loc[[row]], (n,))[0])
        raise wrong(f'row {row} of column {name!r} is empty; fill it, or say missing = "gap" in a contract')
    if empty.any():
        findings.note(f"{counted(int(empty.sum()), 'row')} without a time, or a series, left out")
    return frame[~empty]


def _values(
    frame: pd.DataFrame, names: list[str], contract: SeriesContract, findings: Findings, wrong: Wrong
) -> Values:
    """(T, C). NaN where a cell is empty, which only missing = "gap" allows."""
    values = np.empty((len(frame), len(names)))
    for i, name in enumerate(names):
        column = frame[name] if frame[name].dtype != object else frame[name].astype(float)
        values[:, i] = column.to_numpy(dtype=np.float64, na_value=np.nan)
        bad = np.isinf(values[:, i])
        if contract.missing == "refuse":
            bad |= np.isnan(values[:, i])
        if bad.any():
            at = int(np.argmax(bad))
            empty = "is infinite" if np.isinf(values[at, i]) else 'is empty; fill it, or say missing = "gap"'
            raise wrong(f"row {frame.index[at]} of column {name!r} {empty}: expected finite numbers")
    missing = int(np.isnan(values).sum())
    if missing:
        findings.fact("missing", f"{missing:,} values are missing; no window holds one")
    return values


def _by_name(
    frame: pd.DataFrame, values: Values, when: Times | None, contract: SeriesContract, wrong: Wrong
) -> Iterator[Series]:
    """The series in the order in which they first come, each with its rows in the order of the table."""
    import pandas as pd

    rows = frame.index.to_numpy(dtype=np.int64)
    if contract.series is None:
        groups = {"": np.arange(len(frame))}
    else:
        codes, names = pd.factorize(frame[contract.series])
        order = np.argsort(codes, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(codes, minlength=len(names)))[:-1])
        groups = {str(name): part for name, part in zip(names, parts, strict=True)}
    for name, own in groups.items():
        times, wall = when, None
        if times is not None:
            times = replace(times, instants=times.instants[own])
            if (
                contract.order == "sort"
            ):  # before a zone is applied, which goes by the order of an hour's two rows
                own = own[np.argsort(times.instants, kind="stable")]
                times = replace(times, instants=when.instants[own]) if when is not None else None
        if times is not None:
            times, wall = local(wrong, times, rows[own], contract.zone)
        yield Series(name, values[own].T, np.zeros(len(own), dtype=bool), rows[own], times, wall)


def _in_order(
    series: Series, contract: SeriesContract, column: str, findings: Findings, wrong: Wrong
) -> Series:
    """In time order, each time once. Raises: InputError naming the row that is not."""
    if series.times is None:
        return series
    apart = np.diff(series.times.instants)
    if (apart < 0).any():
        at = int(np.argmax(apart < 0)) + 1
        rule = (
            f"rows must be in time order, row {series.rows[at]} of {column} is earlier than the one before it"
        )
        help_ = 'say order = "sort" in a contract, or zone = "Europe/Berlin" where clocks were put back'
        raise wrong(f"{rule}; {help_}")
    if not (apart == 0).any():
        return series
    same = np.concatenate([[False], apart == 0])
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


def _found_step(series: list[Series], findings: Findings) -> Step | None:
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


def _ticks(series: Series, step: Step) -> Ticks:
    assert series.times is not None
    assert series.wall is not None
    return series.wall if step.by_the_clock else series.times.instants


def _resampled(series: Series, step: Step, how: str, findings: Findings) -> Series:
    """One value a step, of the rows that fall into it; a step without a row is a gap."""
    ticks = _ticks(series, step)
    bins = step.bins(ticks)
    begins = np.flatnonzero(np.concatenate([[True], np.diff(bins) != 0]))
    findings.note(f"rows are brought to one a {step}: {how} of those that fall into it")
    rows = replace(series.at(begins), values=_reduced(series.values, begins, how))
    first = np.concatenate([[True], np.diff(bins[begins]) != 1])
    return replace(rows, first=first, times=None)


def _apart(series: Series, step: Step | None, findings: Findings, wrong: Wrong) -> Series:
    """Mark the rows that are not one step after the one before. Raises: InputError naming one between two steps."""
    if step is None or series.times is None:
        _note_gaps(series, findings)
        return series
    apart = step.between(_ticks(series, step))
    off = ~np.isfinite(apart)
    if off.any():
        at = int(np.argmax(off)) + 1
        rule = f"row {series.rows[at]} is no whole number of steps ({step}) after the one before it"
        rule += f", nor are {int(off.sum()) - 1:,} other rows" if off.sum() > 1 else ""
        raise wrong(f'{rule}; say step (as "1h", or "row"), or resample = "mean", or zone, in a contract')
    first = np.concatenate([[True], apart != 1])
    found = replace(series, first=first)
    _note_gaps(found, findings, int((apart[apart > 1] - 1).sum()))
    return found


def _note_gaps(series: Series, findings: Findings, lost: int = 0) -> None:
    gaps = int(series.first[1:].sum())
    if gaps:
        whose = f" of series {series.name!r}" if series.name else ""
        steps_ = f" ({counted(lost, 'step')} without a row)" if lost else ""
        findings.note(f"{counted(gaps, 'gap')} between rows{whose}{steps_}; no window crosses one")


def span(series: list[Series]) -> str | None:
    """From the first to the last time."""
    told = [(one.wall, _counted(one)) for one in series if one.wall is not None and len(one.wall)]
    if not told:
        return None
    first, last = min(int(wall[0]) for wall, _ in told), max(int(wall[-1]) for wall, _ in told)
    return f"{shown(first, told[0][1])} to {shown(last, told[0][1])}"
