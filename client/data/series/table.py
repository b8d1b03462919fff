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
from typing import TYPE_CHECKING, Any

import numpy as np

from ....errors import InputError
from ....settings import DataSource
from ....settings.contract import FileContract, SeriesContract
from ..findings import Findings, counted
from ..tables.csv_files import CSV, inner_suffix
from ..tables.database import is_database
from ..tables.frames import SUFFIXES, read_frame
from . import steps
from .built_in import BUILT_IN
from .order import Series, Values, apart, found_step, in_order, note_gaps, resampled
from .steps import Step
from .times import Times, Wrong, columns_of_times, empty_times, local, read_times

if TYPE_CHECKING:
    import pandas as pd

_ETT_DAYS = 20 * 30
_DECIMAL_COMMA = re.compile(r"[-+]?[\d.]*\d,\d+")


@dataclass(frozen=True)
class Read:
    """`names`: the columns of values, `named` by someone. `step`: none where no column tells the time."""

    series: list[Series]
    names: list[str]
    named: bool = False
    step: Step | None = None


def read_series(field: str, source: DataSource, contract: SeriesContract | None, findings: Findings) -> Read:
    """All series of a table. Raises: InputError naming the source, the row or column, and what would mend it."""
    frame = read_rows(field, source.source, contract, findings)
    return series_of(field, source, frame, contract, findings)


def series_of(
    field: str, source: DataSource, frame: pd.DataFrame, contract: SeriesContract | None, findings: Findings
) -> Read:
    """As `read_series`, of a table that was read before."""
    wrong: Wrong = partial(InputError, field, source.source)
    names = _told_channels(field, source, frame, contract, findings)
    named = names is not None
    told = contract or SeriesContract()
    for name in (*told.times, *([told.series] if told.series else [])):
        if name not in frame.columns:
            raise wrong(f"column {name!r} is missing; there are {', '.join(map(repr, frame.columns[:12]))}")
    times = told.times or _likely_times(frame, names, told, findings)
    by_contract = contract is not None and contract.channels is not None
    place = f"{field.removesuffix('.source')}.contract.channels" if by_contract else f"{field}.columns"
    names = _channels(place, frame, names, {*times, *([told.series] if told.series else [])}, told, wrong)
    frame = _without_empty(frame, times, told, findings, wrong)
    values = _values(frame, names, told, findings, wrong)
    when = read_times(wrong, frame, times, told, findings) if times else None
    series = [
        in_order(one, told, " and ".join(map(repr, times)), findings, wrong)
        for one in _by_name(frame, values, when, told, wrong)
    ]
    if when is None:
        findings.note("no column of times: rows are taken as in order and evenly spaced")
        return Read(series, names, named)
    step = found_step(series) if told.step is None else steps.told(told.step)
    if when.counted and told.step not in (None, "row"):
        raise wrong(f'{" and ".join(map(repr, times))} holds plain numbers; say unit = "s" in a contract')
    if step is not None and told.resample is not None:
        series = [resampled(one, step, told.resample, findings) for one in series]
    elif step is not None:
        series = [apart(one, step, wrong) for one in series]
    note_gaps(series, findings)
    return Read(series, names, named, step)


def _told_channels(
    field: str, source: DataSource, frame: pd.DataFrame, contract: SeriesContract | None, findings: Findings
) -> list[str] | None:
    """The contract's; else those of the settings, which may be of another source."""
    names = None if source.columns is None else list(source.columns)
    if contract is None or names is None:
        return names if contract is None or contract.channels is None else list(contract.channels)
    if contract.channels is None and any(name in frame.columns for name in names):
        return names
    chosen = None if contract.channels is None else list(contract.channels)
    if chosen != names:
        findings.note(f"{field.removesuffix('.source')}.columns is not used: the contract says what is read")
    return chosen


def read_rows(field: str, source: str, contract: FileContract | None, findings: Findings) -> pd.DataFrame:
    """The rows of a table, numbered from 1. Raises: InputError where they cannot be told apart."""
    import pandas as pd

    path = Path(source)
    check_file(field, source)
    frame = read_frame(field, source, contract or FileContract())
    odd = [name for name in frame.columns if ";" in name or "\t" in name]
    if odd:
        rule = f"column {odd[0]!r} holds a separator in its name"
        raise InputError(field, source, f'{rule}; say which it is, as separator = ";", in a contract')
    if isinstance(frame.index, pd.DatetimeIndex):  # a table whose index has no name
        frame = frame.reset_index(names="time")
    if len(frame) == 0:
        raise InputError(field, source, "no rows")
    ett = re.fullmatch(r"ETT([hm])[12]\.csv", path.name)
    if ett and contract is None:  # Zhou et al. 2021 (Informer): an hour or a quarter of one a row
        frame = frame.iloc[: _ETT_DAYS * (24 if ett[1] == "h" else 96)]
        findings.note("of ETT, the first 20 months are used, as in the literature")
    return frame.set_axis(pd.RangeIndex(1, len(frame) + 1))


def check_file(field: str, source: str) -> None:
    """Raises: InputError where there is no file of a table by this name."""
    path = Path(source)
    if is_database(source):
        return
    try:
        if path.is_dir():
            raise InputError(field, str(path), "is a folder; name one file of it")
        if not path.is_file():
            raise InputError(field, str(path), f"no such file; built-in sets: {', '.join(BUILT_IN)}")
    except OSError as error:
        raise InputError(field, str(path), f"not readable ({error.strerror})") from None
    if inner_suffix(path) not in (*SUFFIXES, *CSV):
        raise InputError(field, str(path), f"expected a table: {', '.join(SUFFIXES)}")


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
    place: str,
    frame: pd.DataFrame,
    names: list[str] | None,
    others: set[str],
    told: SeriesContract,
    wrong: Wrong,
) -> list[str]:
    """The columns named, at `place`, else all but those that tell times or series; each must hold numbers."""
    spare = {name for found in columns_of_times(frame) for name in found} if names is None else set()
    for name in names or ():
        if name not in frame.columns:
            raise InputError(place, name, "no such column")
    chosen = [name for name in frame.columns if name not in others | spare] if names is None else names
    for name in chosen:
        if not is_number(frame[name]):
            rule = f"expected numbers in this column{_why_text(frame[name], told)}"
            if names is None:
                raise wrong(f"column {name!r}: {rule}; name the columns of values as channels in a contract")
            raise InputError(place, name, rule)
    return list(chosen)


def is_number(column: pd.Series[Any]) -> bool:
    """Whether it holds numbers, or nothing."""
    import pandas as pd

    empty = column.dtype == object and column.isna().all()
    decimal = pd.api.types.infer_dtype(column, skipna=True) == "decimal"
    return bool(pd.api.types.is_numeric_dtype(column) or empty or decimal)


def _why_text(column: pd.Series[Any], told: SeriesContract) -> str:
    cells = [cell for cell in column if isinstance(cell, str)][:1000]
    commas = sum(_DECIMAL_COMMA.fullmatch(cell.strip()) is not None for cell in cells)
    if not cells or commas <= 0.5 * len(cells):
        return ""
    if told.decimal == ",":
        return " (perhaps it has points between thousands: write numbers without)"
    if told.separator == ",":
        return " (it has decimal commas: save it with semicolons between columns, or with decimal points)"
    return ' (it has decimal commas: say decimal = ",")'


def _without_empty(
    frame: pd.DataFrame, times: tuple[str, ...], contract: SeriesContract, findings: Findings, wrong: Wrong
) -> pd.DataFrame:
    """Rows without a time or a series refused, or left out where the contract allows gaps."""
    columns = (*times, *([contract.series] if contract.series else []))
    empty = empty_times(frame, columns)
    if empty.any() and contract.missing == "refuse":
        row = int(frame.index[np.argmax(empty)])
        name = next(n for n in columns if empty_times(frame.loc[[row]], (n,))[0])
        raise wrong(f'row {row} of column {name!r} is empty; fill it, or say missing = "gap" in a contract')
    if empty.any():
        findings.note(f"{counted(int(empty.sum()), 'row')} without a time, or a series, left out")
    if empty.all():
        raise wrong(f"no row holds {' and '.join(map(repr, columns))}")
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
