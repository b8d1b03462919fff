"""Time series from a built-in set or from the company's own disk, cut into pairs of past and future.

A table has one row a time and one column a channel (see `series_table.py`). An example is `context_length` steps
and the `horizon` steps after them; examples follow each other at a stride of one horizon, so no two share
a target, while a value may be context of several. Example-level privacy here covers a window, not a series
and not a single value: a value lies in up to context_length / horizon + 1 windows.

Each window is normalised by its own context alone. A statistic of the whole series would let one example
change all others, which example-level privacy does not allow for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ....blocks.series import normalise
from ....blocks.settings import SeriesSettings
from ....errors import InputError
from ....settings import DataSource
from ....settings.contract import SeriesContract
from ..findings import Findings, counted
from .built_in import BUILT_IN
from .order import Mask, Series, Values, span
from .table import read_series

Part = Literal["all", "train", "validation", "test"]

# Shares of a series in time order. ETT's usual 12, 4 and 4 months are the same shares of its first 20.
_PARTS: dict[Part, tuple[float, float]] = {
    "all": (0.0, 1.0), "train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0),
}  # fmt: skip

ROUNDING = 1e-12
"""A context that varies by so small a share of its values is constant but for the rounding of 64 bits."""
RESTING = 1e-4
"""So is one that varies by so small a share of its window's range: divided by it, a target would be ten thousand."""
LARGE_TARGET = 1000.0


def load_series(
    field: str,
    source: DataSource,
    model: SeriesSettings,
    part: Part = "all",
    contract: SeriesContract | None = None,
    findings: Findings | None = None,
) -> tuple[Tensor, Tensor]:
    """inputs (N, C, context_length) and targets (N, C, horizon), float32, normalised by their context.

    Series follow one another, each in time order. No window crosses from one part, series or side of a gap
    to another; unlike the usual ETT protocol, a test window's context lies in the test part too. A window
    whose context is constant but for rounding has no scale and is left out: which are, a window tells by itself.
    """
    findings = findings or Findings(source.source)
    length = model.context_length + model.horizon
    every = [
        stretch
        for series in _read(field, source, model, contract, findings)
        for stretch in stretches(_cut(series, part))
    ]
    found = [torch.from_numpy(_windows(s, length, model.horizon)) for s in every if s.shape[1] >= length]
    short = [s.shape[1] for s in every if s.shape[1] < length]
    if not found:
        longest = counted(max(short, default=0), "step")
        rule = f"no stretch of context_length + horizon = {length} steps ({part}); the longest is {longest}"
        help_ = (
            "shorten model.context_length, or fill gaps" if len(every) > 1 else "shorten model.context_length"
        )
        raise InputError(field, source.source, f"{rule}: {help_}")
    if short:
        rows = f"{counted(sum(short), 'row')} in {len(short):,} stretches between gaps"
        findings.note(f"{rows} give no example: each is shorter than context_length + horizon = {length}")
    windows = torch.cat(found)  # (N, C, context_length + horizon) float64
    pair = windows.split([model.context_length, model.horizon], dim=2)
    inputs, targets, scale = normalise(*pair)
    top, bottom = windows.amax(dim=2, keepdim=True), windows.amin(dim=2, keepdim=True)
    least = torch.maximum(ROUNDING * torch.maximum(top.abs(), bottom.abs()), RESTING * (top - bottom))
    least = least.clamp(min=0.0 if contract is None else contract.resolution)
    kept = (scale > least).flatten(1).all(dim=1)
    if not kept.any():
        raise InputError(
            field, source.source, "every context is constant, or varies by no more than rounding"
        )
    if not kept.all():
        lost = f"{int((~kept).sum()):,} of {len(kept):,} windows"
        findings.note(f"{lost} are left out: their context is constant but for rounding")
    inputs, targets = inputs[kept].float(), targets[kept].float()
    large = int((targets.abs() > LARGE_TARGET).flatten(1).any(dim=1).sum())
    if large:
        rule = "are over 1,000 deviations from their context; say in a contract which resolution counts"
        findings.note(f"targets of {counted(large, 'window')} {rule}")
    findings.fact("examples", f"{len(targets):,} windows of {model.context_length} + {model.horizon} steps")
    if contract is not None and len(targets) < contract.least_examples:
        rule = f"{counted(len(targets), 'window')} can be used, contract.least_examples={contract.least_examples}"
        raise InputError(field, source.source, rule)
    return inputs, targets


def _cut(series: Series, part: Part) -> Series:
    low, high = (round(share * series.values.shape[1]) for share in _PARTS[part])
    return series.at(slice(low, high))


def stretches(series: Series) -> Iterator[Values]:
    """(C, T) -> its parts without a missing value or a gap."""
    whole: Mask = np.all(np.isfinite(series.values), axis=0)
    joined = whole[1:] & whole[:-1] & ~series.first[1:]  # with the row before
    begins = np.flatnonzero(whole & ~np.append(False, joined))
    ends = np.flatnonzero(whole & ~np.append(joined, False)) + 1
    for begin, end in zip(begins, ends, strict=True):
        yield series.values[:, begin:end]


def _windows(series: Values, length: int, stride: int) -> Values:
    """(C, T) -> (N, C, length)."""
    every = np.lib.stride_tricks.sliding_window_view(series, length, axis=1)[:, ::stride]
    return np.array(every.transpose(1, 0, 2))  # a copy: the view is read-only


def _read(
    field: str, source: DataSource, model: SeriesSettings, contract: SeriesContract | None, findings: Findings
) -> list[Series]:
    """The series: the columns are its channels, or with one channel every column is a series."""
    if source.source in BUILT_IN:
        table = BUILT_IN[source.source]()
        names = list(table.columns if source.columns is None else source.columns)
        for name in names:
            if name not in table.columns:
                raise InputError(f"{field}.columns", name, "no such column")
        values = table[names].to_numpy(dtype=np.float64).T
        series = [Series("", values, np.zeros(len(table), dtype=bool), np.arange(1, len(table) + 1))]
        if contract is not None:
            findings.note("a built-in set is read without the contract")
    else:
        found = read_series(field, source, contract, findings)
        series, names = found.series, found.names
        if not found.named and (not names or len(names) != model.channels):
            rule = f"model.channels={model.channels}; name the columns to use"
            raise InputError(field, f"{len(names)} numeric columns", rule)
        findings.fact("step", found.step or "one row")
        when = span(series)
        if when is not None:
            findings.fact("times", when)
    findings.fact(
        "channels", ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    )
    findings.fact("series", f"{len(series):,}, of {sum(s.values.shape[1] for s in series):,} rows")
    if len(names) == model.channels:
        return series
    if model.channels == 1:
        return [one.channel(i) for one in series for i in range(len(names))]
    place = f"{field}.columns" if contract is None else f"{field.removesuffix('.source')}.contract.channels"
    raise InputError(place, len(names), f"expected model.channels={model.channels} columns")
