"""Columns of times, read without guessing: a date that has two meanings is refused unless the contract tells which.

Read are ISO 8601 with or without an offset from UTC, dates in digits (with an hour and a half of the day), dates with
an English month, quarters, days as YYYYMMDD, and numbers since 1970 where the contract names their unit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ....errors import InputError
from ....settings.contract import SeriesContract
from ..findings import Findings

if TYPE_CHECKING:
    import pandas as pd

Ticks = npt.NDArray[np.int64]
Wrong = Callable[[str], InputError]  # an error about one source, by what is wrong with it

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = f"(?:{'|'.join(_MONTHS)})[a-z]*\\.?"
_DATE = rf"""(?:
      (?P<year>\d{{4}})(?P<s>[-/.\s])(?P<month>\d{{1,2}})(?:(?P=s)(?P<day>\d{{1,2}}))?
    | (?P<first>\d{{1,2}})(?P<t>[-/.])(?P<second>\d{{1,2}})(?P=t)(?P<last>\d{{4}}|\d{{2}})
    | (?P<packed>\d{{6}}(?:\d{{2}})?)
    | (?P<day2>\d{{1,2}})[-\s/.]*(?P<name>{_MONTH})[-\s/.]*(?P<year2>\d{{4}})
    | (?P<name3>{_MONTH})[-\s](?:(?P<day3>\d{{1,2}}),?\s)?\s*(?P<year3>\d{{4}})
    | (?P<year4>\d{{4}})[-\s]?Q(?P<quarter>[1-4])
)"""
_CLOCK = r"""(?P<hour>\d{1,2})(?::(?P<minute>\d{2})(?::(?P<seconds>\d{2})(?:[.,](?P<part>\d+))?)?)?
    (?:\s*(?P<half>[ap])\.?m\.?)?"""
_OFFSET = r"(?P<offset>Z|UTC|[-+]\d{2}:?\d{2}|[-+]\d{2})"
_FORM = re.compile(rf"{_DATE}(?:(?:T|,?\s+){_CLOCK}\s*{_OFFSET}?)?", re.VERBOSE | re.IGNORECASE)
_LOOKED_AT = 1000  # cells, to tell what a column of text holds
_ONLY_CLOCK = re.compile(rf"(?=\d{{1,2}}:){_CLOCK}", re.VERBOSE | re.IGNORECASE)


@dataclass(frozen=True)
class Times:
    """`instants` (T,): microseconds since 1970 in UTC, or by the clock that was read where no offset is known.

    `counted`: they are whole numbers of something else. `aware`: UTC is known.
    """

    instants: Ticks
    counted: bool = False
    aware: bool = False


def columns_of_times(frame: pd.DataFrame) -> list[tuple[str, ...]]:
    """What could be the time: columns, or one of dates and one of times of day together. Numbers are never taken."""
    kinds = {name: _kind(frame[name]) for name in frame.columns}
    dates = [name for name, kind in kinds.items() if kind == "date"]
    clocks = [name for name, kind in kinds.items() if kind == "clock"]
    if len(dates) == 1 and len(clocks) == 1:
        return [(dates[0], clocks[0])]
    return [(name,) for wanted in ("time", "date") for name, kind in kinds.items() if kind == wanted]


def read_times(
    wrong: Wrong, frame: pd.DataFrame, names: tuple[str, ...], contract: SeriesContract, findings: Findings
) -> Times:
    """The time of every row, none of which may be empty. The index of `frame` has the rows' numbers, for errors.

    Raises: InputError with the row where a cell is no time.
    """
    import pandas as pd

    shown = " and ".join(repr(name) for name in names)
    column = frame[names[0]]
    if len(names) == 1 and pd.api.types.is_numeric_dtype(column):
        numbers = column.to_numpy(dtype=np.float64)
        if contract.unit is not None:
            scale = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}[contract.unit]
            return Times(np.round(numbers * scale).astype(np.int64), aware=True)
        if not (numbers == np.floor(numbers)).all():
            rule = 'holds numbers that are not whole; say what they are, as unit = "s", in a contract'
            raise wrong(f"column {shown} {rule}")
        form = _packed(numbers)
        if form is None:
            return Times(numbers.astype(np.int64), counted=True)
        findings.note(f"column {shown} is read as {form}")
    if len(names) == 1 and pd.api.types.is_datetime64_any_dtype(column):
        aware = column.dt.tz is not None
        plain = column.dt.tz_convert("UTC").dt.tz_localize(None) if aware else column
        return Times(plain.to_numpy(dtype="datetime64[us]").astype(np.int64), aware=aware)
    cells = [" ".join(parts) for parts in zip(*(_text(frame[name]) for name in names), strict=True)]
    return _from_text(wrong, shown, dict(zip(frame.index, cells, strict=True)), contract, findings)


def empty_times(frame: pd.DataFrame, names: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    empty = np.zeros(len(frame), dtype=bool)
    for name in names:
        cells = frame[name]
        blank = np.array([isinstance(cell, str) and not cell.strip() for cell in cells], dtype=bool)
        empty |= cells.isna().to_numpy(dtype=bool) | blank
    return empty


def _from_text(
    wrong: Wrong, shown: str, cells: dict[int, str], contract: SeriesContract, findings: Findings
) -> Times:
    matches: dict[int, re.Match[str]] = {}
    for row, cell in cells.items():
        match = _FORM.fullmatch(cell)
        if match is None:
            rule = "is no time that can be read; write it as 2024-01-31 12:00"
            if _ONLY_CLOCK.fullmatch(cell):
                rule = 'is a time of day without a date; name both columns, as time = ["Date", "Time"]'
            raise wrong(f"row {row} of column {shown} {rule}")
        matches[row] = match
    aware = {row: match["offset"] is not None for row, match in matches.items()}
    all_aware = all(aware.values())
    if any(aware.values()) and not all_aware:
        row = next(row for row, one in aware.items() if one != next(iter(aware.values())))
        rule = f"{'has an' if aware[row] else 'has no'} offset from UTC, unlike the rows before it"
        raise wrong(f"row {row} of column {shown} {rule}")
    day_first = _day_first(wrong, shown, matches, contract, findings)
    instants = np.empty(len(cells), np.int64)
    for i, (row, match) in enumerate(matches.items()):
        try:
            instants[i] = _instant(match, day_first)
        except (ValueError, OverflowError):
            rule = "is no time: there is no such day or hour"
            raise wrong(f"row {row} of column {shown} {rule}") from None
    return Times(instants, aware=all_aware)


def _day_first(
    wrong: Wrong, shown: str, matches: dict[int, re.Match[str]], contract: SeriesContract, findings: Findings
) -> bool:
    """Whether 03/04/2024 is in April: as told, or as the rows say that have but one meaning."""
    pairs = [(row, m) for row, m in matches.items() if m["first"] is not None]
    if contract.day_first is not None or not pairs:
        return bool(contract.day_first)
    days = [row for row, m in pairs if int(m["first"]) > 12]
    months = [row for row, m in pairs if int(m["second"]) > 12]
    row = pairs[0][0]
    if days and months:
        rule = f"has the day first, and row {months[0]} the month; write all as 2024-01-31"
        raise wrong(f"row {days[0]} of column {shown} {rule}")
    if len(pairs[0][1]["last"]) == 2 or not (days or months):
        rule = "has two meanings, day first or month first; say day_first = true, or false, in a contract"
        raise wrong(f"row {row} of column {shown} {rule}")
    findings.note(f"dates in column {shown} have the {'day' if days else 'month'} first")
    return bool(days)


def _instant(m: re.Match[str], day_first: bool) -> int:
    """Microseconds since 1970. Raises: ValueError where there is no such time."""
    day: str | int
    if m["year"] is not None:
        year, month, day = m["year"], int(m["month"]), m["day"] or 1
    elif m["first"] is not None:
        year = m["last"]
        month, day = int(m["second" if day_first else "first"]), m["first" if day_first else "second"]
    elif m["packed"] is not None:
        year, month, day = m["packed"][:4], int(m["packed"][4:6]), m["packed"][6:] or 1
    elif m["quarter"] is not None:
        year, month, day = m["year4"], 3 * int(m["quarter"]) - 2, 1
    else:
        name = m["name"] or m["name3"]
        year, month, day = (
            m["year2"] or m["year3"],
            _MONTHS.index(name[:3].lower()) + 1,
            m["day2"] or m["day3"] or 1,
        )
    full = (
        int(year) if len(year) == 4 else int(year) + (1900 if int(year) >= 69 else 2000)
    )  # as strptime's %y
    hour = int(m["hour"] or 0)
    if m["half"] is not None:
        if not 1 <= hour <= 12:
            raise ValueError
        hour = hour % 12 + (12 if m["half"] in "pP" else 0)
    minute, seconds = int(m["minute"] or 0), int(m["seconds"] or 0)
    part = int((m["part"] or "0").ljust(6, "0")[:6])
    if not (minute < 60 and seconds < 60 and (hour < 24 or (hour == 24 and minute == seconds == part == 0))):
        raise ValueError
    whole = (date(full, month, int(day)).toordinal() - _EPOCH.toordinal()) * 86400
    return (whole + hour * 3600 + minute * 60 + seconds - _ahead(m["offset"])) * 10**6 + part


_EPOCH = datetime(1970, 1, 1)


def _ahead(offset: str | None) -> int:
    """Seconds ahead of UTC."""
    if offset is None or offset.upper() in ("Z", "UTC"):
        return 0
    digits = offset[1:].replace(":", "").ljust(4, "0")
    seconds = int(digits[:2]) * 3600 + int(digits[2:]) * 60
    return -seconds if offset[0] == "-" else seconds


def _text(column: pd.Series[Any]) -> list[str]:
    """Cells as text: whole numbers without a point, days without a time."""
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(column):
        days = bool((column == column.dt.normalize()).all()) and column.dt.tz is None
        return [str(cell.date()) if days else cell.isoformat() for cell in column]
    if pd.api.types.is_numeric_dtype(column):
        return [str(int(cell)) if cell == int(cell) else str(cell) for cell in column]
    return [str(cell).strip() for cell in column]


def _kind(column: pd.Series[Any]) -> str | None:
    """Of a column of times: "date", "time" of a date, or "clock", of a day. Of text, the first cells tell."""
    import pandas as pd

    cells = column.dropna()
    cells = cells if pd.api.types.is_datetime64_any_dtype(cells) else cells[:_LOOKED_AT]
    if len(cells) == 0 or pd.api.types.is_numeric_dtype(cells):
        return None
    if pd.api.types.is_datetime64_any_dtype(cells):
        return "date" if (cells == cells.dt.normalize()).all() else "time"
    if all(isinstance(cell, time) for cell in cells):
        return "clock"
    if all(isinstance(cell, date) for cell in cells):
        return "date"
    if not all(isinstance(cell, str) for cell in cells):
        return None
    text = [cell.strip() for cell in cells if cell.strip()]
    if all(_ONLY_CLOCK.fullmatch(cell) for cell in text):
        return "clock" if text else None
    forms = [_FORM.fullmatch(cell) for cell in text]
    if not all(forms):
        return None
    return "time" if any(form is not None and form["hour"] is not None for form in forms) else "date"


def _packed(numbers: npt.NDArray[np.float64]) -> str | None:
    """How whole numbers are dates, if they are."""
    whole = numbers.astype(np.int64)
    for form, day, unit in (("days, YYYYMMDD", whole % 100, 100), ("months, YYYYMM", np.int64(1), 1)):
        year, month = whole // unit // 100, whole // unit % 100
        valid = (year >= 1900) & (year < 2200) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
        if len(whole) > 1 and valid.all():
            return form
    return None


def local(wrong: Wrong, times: Times, rows: Ticks, zone: str | None) -> tuple[Times, Ticks]:
    """The times in UTC where a zone tells it, and by the clocks there. `rows` are their numbers, for errors.

    A clock that is put back shows an hour twice: the rows of it that come after a later, or the same, time are the
    second one.
    """
    import pandas as pd

    if zone is None or times.counted:
        return times, times.instants
    index = pd.DatetimeIndex(times.instants.astype("datetime64[us]"))
    if times.aware:
        wall = index.tz_localize("UTC").tz_convert(zone).tz_localize(None)
        return times, wall.to_numpy(dtype="datetime64[us]").astype(np.int64)
    before = np.maximum.accumulate(np.concatenate([[np.iinfo(np.int64).min], times.instants[:-1]]))
    told = index.tz_localize(zone, ambiguous=before < times.instants, nonexistent="NaT")
    none = np.asarray(told.isna())
    if none.any():
        row = rows[int(np.argmax(none))]
        raise wrong(f"row {row}: clocks in {zone} never showed this time, as they were put forward")
    utc = told.tz_convert("UTC").tz_localize(None).to_numpy(dtype="datetime64[us]").astype(np.int64)
    return Times(utc, aware=True), times.instants


def shown(ticks: int, counted: bool) -> str:
    """A time as people write it."""
    return str(ticks) if counted else str(_EPOCH + timedelta(microseconds=int(ticks)))
