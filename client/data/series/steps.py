"""The step of a series: how far it is from row to row, in hours, months, weekdays or rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ....settings.contract import STEP
from .times import Ticks

_MICROSECONDS = {
    "s": 10**6, "min": 60 * 10**6, "h": 3600 * 10**6, "d": 86400 * 10**6, "w": 7 * 86400 * 10**6,
}  # fmt: skip
_MONTHS = {"month": 1, "quarter": 3, "year": 12}
_DAY = _MICROSECONDS["d"]
_MONDAY = 4 * _DAY  # 1970-01-05


@dataclass(frozen=True)
class Step:
    """`size` of `unit`: microseconds ("us"), months, weekdays, rows, or whole numbers ("count")."""

    size: int
    unit: str

    def __str__(self) -> str:
        if self.unit == "us":
            whole = [name for name, one in _MICROSECONDS.items() if self.size % one == 0]
            return (
                f"{self.size // _MICROSECONDS[whole[-1]]}{whole[-1]}" if whole else f"{self.size / 10**6:g}s"
            )
        if self.unit == "month":
            name = "year" if self.size % 12 == 0 else "quarter" if self.size % 3 == 0 else "month"
            return f"{self.size // _MONTHS[name]}{name}"
        return self.unit if self.unit in ("weekday", "row") else str(self.size)

    @property
    def by_the_clock(self) -> bool:
        """Whether it goes by local days, which daylight saving makes longer or shorter."""
        return self.unit in ("month", "weekday") or (self.unit == "us" and self.size % _DAY == 0)

    def between(self, ticks: Ticks) -> npt.NDArray[np.float64]:
        """(T,) -> (T - 1,): steps from each row to the next; NaN where they are no whole number."""
        if self.unit == "row" or len(ticks) < 2:
            return np.ones(max(len(ticks) - 1, 0))
        if self.unit == "month":
            index, within = _in_months(ticks)
            ends = _at_end(ticks)
            same = (np.diff(within) == 0) | (ends[1:] & ends[:-1] & (np.diff(ticks % _DAY) == 0))
            return _whole(np.diff(index), self.size, same)
        if self.unit == "weekday":
            days, within = np.divmod(ticks, _DAY)
            dates = days.astype("datetime64[D]")
            apart = np.busday_count(dates[:-1], dates[1:]).astype(np.int64)
            return _whole(
                apart, 1, (np.diff(within) == 0) & np.is_busday(dates[1:]) & np.is_busday(dates[:-1])
            )
        return _whole(np.diff(ticks), self.size, np.ones(len(ticks) - 1, dtype=bool))

    def bins(self, ticks: Ticks) -> Ticks:
        """The number of the step that each time falls into; weeks begin on Monday."""
        if self.unit == "month":
            return _in_months(ticks)[0] // self.size
        return (ticks - (_MONDAY if self.size % _MICROSECONDS["w"] == 0 else 0)) // self.size


def told(text: str) -> Step:
    """The step that a contract names."""
    if text in ("row", "weekday"):
        return Step(1, text)
    match = STEP.fullmatch(text)
    assert match is not None
    count = int(match[1] or 1)
    if match[2] in _MONTHS:
        return Step(count * _MONTHS[match[2]], "month")
    return Step(count * _MICROSECONDS[match[2]], "us")


def found(series: list[Ticks], counted: bool) -> Step | None:
    """The most frequent step of all series together; none where there are no two rows."""
    apart = np.concatenate([np.diff(ticks) for ticks in series]) if series else np.empty(0, np.int64)
    apart = apart[apart > 0]
    if len(apart) == 0:
        return None
    size = _most_frequent(apart)
    if counted:
        return Step(size, "count")
    every = np.concatenate(series)
    if size >= 28 * _DAY:
        within = np.concatenate([_in_months(ticks)[1] for ticks in series])
        if (within == _most_frequent(within)).mean() >= 0.9 or _at_end(every).all():
            months = np.concatenate([np.diff(_in_months(ticks)[0]) for ticks in series])
            return Step(_most_frequent(months[months > 0]), "month")
    days = every // _DAY
    if size == _DAY and days.max() - days.min() >= 14 and np.is_busday(days.astype("datetime64[D]")).all():
        return Step(1, "weekday")
    return Step(size, "us")


def _most_frequent(values: Ticks) -> int:
    """The smallest of them where several are."""
    distinct, times = np.unique(values, return_counts=True)
    return int(distinct[np.argmax(times)])


def _whole(apart: Ticks, size: int, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    count, rest = np.divmod(apart, size)
    return np.where(allowed & (rest == 0), count, np.nan).astype(np.float64)


def _in_months(ticks: Ticks) -> tuple[Ticks, Ticks]:
    """Months since 1970, and microseconds since the month began."""
    months = ticks.astype("datetime64[us]").astype("datetime64[M]")
    return months.astype(np.int64), ticks - months.astype("datetime64[us]").astype(np.int64)


def _at_end(ticks: Ticks) -> npt.NDArray[np.bool_]:
    """Whether the day is the last of its month."""
    days = ticks.astype("datetime64[us]").astype("datetime64[D]")
    ends: npt.NDArray[np.bool_] = (days + 1).astype("datetime64[M]") != days.astype("datetime64[M]")
    return ends
