"""Looking at time series before they are used: step, gaps, what looks odd, and a contract to start from."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ....errors import InputError
from ....settings import DataSource
from ....settings.contract import SeriesContract
from ..draft import Inspection, contract_text, note_sentinels
from ..findings import Findings, counted
from ..tables.inspect import how_it_is_written
from .built_in import BUILT_IN
from .load import stretches
from .order import Series, found_step, span, ticks
from .table import Read, check_file, is_number, read_rows, series_of
from .times import Times, columns_of_times, empty_times, read_times

if TYPE_CHECKING:
    import pandas as pd

_PARTS = ("year", "month", "day", "hour", "minute")
_TIME_NAMES = re.compile(r"(^|_)(time|timestamp|ts|date|datetime|epoch|year|unix)(_|$)", re.IGNORECASE)
_RESTS = 24  # steps without a change that are worth a note
_EXAMPLE = (96, 24)


def inspect_series(source: str, table: str | None = None) -> Inspection:
    """Series and their contract. Raises: InputError where it is no readable table."""
    findings = Findings(source)
    if source in BUILT_IN:
        frame = BUILT_IN[source]()
        read = Read(
            [Series("", frame.to_numpy(float).T, np.zeros(len(frame), bool), np.arange(len(frame)))],
            list(frame),
        )
        _facts(read, findings)
        return Inspection(findings, contract_text({"kind": "series"}, findings), _example(read))
    check_file("source", source)
    written = how_it_is_written(source, table, findings)
    frame = read_rows("source", source, written, findings)
    raw: dict[str, Any] = {"kind": "series"} | written.model_dump(exclude_defaults=True)
    raw |= _times(frame, findings)
    raw |= _whose(frame, raw, findings)
    raw |= _channels(frame, raw, findings)
    if frame[raw["channels"]].isna().any().any():
        raw["missing"] = "gap"
    raw |= _order(frame, raw, source, findings)
    where = DataSource(source=source)
    try:
        read = series_of("source", where, frame, SeriesContract.model_validate(raw), findings)
    except InputError as error:
        if "no whole number of steps" not in str(error):
            raise
        raw |= _irregular(frame, raw, source, findings)
        read = series_of("source", where, frame, SeriesContract.model_validate(raw), findings)
    _facts(read, findings)
    return Inspection(findings, contract_text(raw, findings), _example(read))


def _times(frame: pd.DataFrame, findings: Findings) -> dict[str, Any]:
    import pandas as pd

    parts = [name for part in _PARTS for name in frame.columns if name.lower() == part]
    likely = [tuple(parts)] if len(parts) > 1 and parts[0].lower() == "year" else columns_of_times(frame)
    raw: dict[str, Any] = {}
    if not likely:
        numbers = [
            n for n in frame.columns if pd.api.types.is_numeric_dtype(frame[n]) and _TIME_NAMES.search(n)
        ]
        numbers = [n for n in numbers if frame[n].is_monotonic_increasing or frame[n].nunique() < len(frame)]
        if not numbers:
            findings.note("no column holds times: rows are taken as in order and evenly spaced")
            return raw
        likely = [(numbers[0],)]
        digits = len(str(int(frame[numbers[0]].abs().max())))
        unit = {10: "s", 13: "ms", 16: "us", 19: "ns"}.get(digits)
        if unit is not None:
            findings.note(f"column {numbers[0]!r} seems to count {unit} since 1970")
            raw["unit"] = unit
    names = likely[0]
    findings.note(f"times are read from {' and '.join(map(repr, names))}")
    raw["time"] = names[0] if len(names) == 1 else list(names)
    return raw


def _whose(frame: pd.DataFrame, raw: dict[str, Any], findings: Findings) -> dict[str, Any]:
    """The column that tells several series apart: text, or numbers named as an id, each value in several rows."""
    import pandas as pd

    times = _as_tuple(raw.get("time"))
    frame = frame.drop_duplicates()  # which would hide that a column tells rows of one time apart
    if not times or not frame.duplicated(list(times)).any():
        return {}
    for name in frame.columns:
        numeric = pd.api.types.is_numeric_dtype(frame[name])
        if name in times or (
            numeric and re.search(r"(id|nr|no|store|shop|site|sensor|item)$", name.lower()) is None
        ):
            continue
        if 1 < frame[name].nunique() <= len(frame) / 2 and not frame.duplicated([*times, name]).any():
            findings.note(f"column {name!r} tells {frame[name].nunique():,} series apart")
            return {"series": name}
    return {}


def _channels(frame: pd.DataFrame, raw: dict[str, Any], findings: Findings) -> dict[str, Any]:
    others = {*_as_tuple(raw.get("time")), raw.get("series")}
    others |= {name for names in columns_of_times(frame) for name in names}
    names = [name for name in frame.columns if name not in others]
    numbers = [name for name in names if is_number(frame[name]) and frame[name].notna().any()]
    for name in names:
        if name not in numbers:
            findings.note(f"column {name!r} is left out: it holds no numbers")
    if not numbers:
        raise InputError("source", str(list(frame.columns)[:8]), "no column of numbers")
    return {"channels": numbers}


def _order(frame: pd.DataFrame, raw: dict[str, Any], source: str, findings: Findings) -> dict[str, Any]:
    """Whether rows are to be sorted, times stand twice, and the day stands before the month."""
    times = _as_tuple(raw.get("time"))
    if not times:
        return {}
    found: dict[str, Any] = {}
    wrong = partial(InputError, "source", source)
    if empty_times(frame, times).any():
        found["missing"] = "gap"
    rows = frame[~empty_times(frame, times)]
    told = SeriesContract.model_validate(
        {"kind": "series"} | {k: raw[k] for k in ("time", "unit") if k in raw}
    )
    try:
        when = read_times(wrong, rows, times, told, Findings(source))
    except InputError as error:
        if "two meanings" not in str(error):
            raise
        ways = {first: told.model_copy(update={"day_first": first}) for first in (True, False)}
        read = {first: read_times(wrong, rows, times, way, Findings(source)) for first, way in ways.items()}
        found["day_first"] = _evenness(read[True]) >= _evenness(read[False])
        when = read[found["day_first"]]
        which = "day" if found["day_first"] else "month"
        findings.note(f"dates have two meanings: this draft takes the {which} first, which you must check")
    whose = (
        rows.groupby(raw["series"]).ngroup().to_numpy() if "series" in raw else np.zeros(len(rows), dtype=int)
    )
    by_series = np.argsort(whose, kind="stable")
    same = np.diff(whose[by_series]) == 0
    backwards = int((same & (np.diff(when.instants[by_series]) < 0)).sum())
    later = len(rows) - len(np.unique(np.stack([whose, when.instants]), axis=1).T)
    if backwards:
        findings.note(f"{counted(backwards, 'row')} earlier than the one before; this draft sorts them")
        found["order"] = "sort"
    if later:
        findings.note(f"{counted(later, 'row')} of a time that another has; this draft takes the mean")
        found["twice"] = "mean"
    return found


def _evenness(times: Times) -> float:
    """The share of the most frequent step."""
    apart = np.diff(times.instants)
    return float(np.unique(apart, return_counts=True)[1].max() / len(apart)) if len(apart) else 0.0


def _irregular(frame: pd.DataFrame, raw: dict[str, Any], source: str, findings: Findings) -> dict[str, Any]:
    """A grid for rows at any times: of the most frequent step."""
    told = SeriesContract.model_validate(raw | {"step": "row"})
    read = series_of("source", DataSource(source=source), frame, told, Findings(source))
    step = found_step(read.series)
    text = str(step)
    if step is None or step.unit not in ("us", "month") or "." in text:
        text = "1h"
    findings.note(f"rows are not evenly spaced; this draft takes the mean of each {text}")
    return {"step": text, "resample": "mean"}


def _facts(read: Read, findings: Findings) -> None:
    rows = sum(one.values.shape[1] for one in read.series)
    findings.fact("series", f"{len(read.series):,}")
    findings.fact("rows", f"{rows:,}")
    findings.fact("step", read.step or "one row")
    if (when := span(read.series)) is not None:
        findings.fact("times", when)
    if read.step is not None:
        gaps = sum(int(one.first[1:].sum()) for one in read.series)
        lost = sum(float(np.nansum(read.step.between(ticks(one, read.step)) - 1)) for one in read.series)
        findings.fact("gaps", f"{gaps:,}" + (f", of together {lost:,.0f} steps" if gaps and lost > 0 else ""))
    longest = max((s.shape[1] for one in read.series for s in stretches(one)), default=0)
    findings.fact("longest stretch", f"{longest:,} steps without a gap or a missing value")
    for index, name in enumerate(read.names):
        values = np.concatenate([one.values[index] for one in read.series])
        there = values[np.isfinite(values)]
        if len(there) == 0:
            findings.note(f"column {name!r} is empty")
            continue
        hollow = f", {len(values) - len(there):,} missing" if len(there) < len(values) else ""
        findings.fact(name, f"{there.min():g} to {there.max():g}{hollow}")
        rests = _longest_rest(values)
        if rests >= _RESTS:
            findings.note(f"column {name!r} does not change for {rests:,} steps: such contexts are left out")
        note_sentinels(name, there, findings)


def _longest_rest(values: np.ndarray[Any, np.dtype[np.float64]]) -> int:
    """How many values follow each other that are the same."""
    edges = np.flatnonzero(np.append(np.append(True, values[1:] != values[:-1]), True))
    return int(np.diff(edges).max()) if len(values) else 0


def _example(read: Read) -> dict[str, str]:
    """The first channel of the first window, at the usual size or as large as there is."""
    longest = max((s for one in read.series for s in stretches(one)), key=lambda s: s.shape[1], default=None)
    if longest is None or longest.shape[1] < 4:
        return {}
    context = min(_EXAMPLE[0], longest.shape[1] * 3 // 4)
    horizon = min(_EXAMPLE[1], longest.shape[1] - context)
    past, future = longest[0, :context], longest[0, context : context + horizon]
    scale = past.std(ddof=1)
    if not scale > 0:
        return {}
    before = f"{context} values from {past[0]:g} to {past[-1]:g}, then {horizon} from {future[0]:g} to {future[-1]:g}"
    past, future = (past - past.mean()) / scale, (future - past.mean()) / scale
    return {
        before: f"{past[0]:.3g} to {past[-1]:.3g}, then {future[0]:.3g} to {future[-1]:.3g} (in deviations)"
    }


def _as_tuple(names: str | list[str] | None) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)
