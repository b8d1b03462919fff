"""The end of each series in a table: what a forecast of its future starts from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ....blocks.settings import SeriesSettings
from ....errors import InputError
from ....settings import DataSource
from ....settings.contract import SeriesContract
from ..findings import Findings
from .load import stretches
from .order import Series
from .table import read_series
from .times import shown


@dataclass(frozen=True)
class History:
    """The last `context_length` steps of a series, (C, context_length) in its own units.

    `after`: the time of its last step, or its row where rows tell no time; `channels`: the columns' names.
    """

    series: str
    channels: tuple[str, ...]
    after: str
    values: Tensor


def load_histories(
    field: str, source: DataSource, model: SeriesSettings, contract: SeriesContract | None, findings: Findings
) -> list[History]:
    """One a series; with a model of one channel, one a column.

    Raises: InputError where a series is too short, or ends in a missing value or right after a gap.
    """
    found = read_series(field, source, contract, findings)
    names = tuple(found.names)
    if len(names) == model.channels:
        pairs = [(one, names) for one in found.series]
    elif model.channels == 1:
        pairs = [(one.channel(i), (name,)) for one in found.series for i, name in enumerate(names)]
    else:
        rule = f"model.channels={model.channels}; name them as channels in a contract"
        raise InputError(field, f"{len(names)} numeric columns", rule)
    return [_history(field, source.source, one, channels, model) for one, channels in pairs]


def _history(
    field: str, source: str, series: Series, channels: tuple[str, ...], model: SeriesSettings
) -> History:
    whole = [values.shape[1] for values in stretches(series)]
    length = whole[-1] if whole and np.isfinite(series.values[:, -1]).all() else 0
    if length < model.context_length:
        named = f"series {series.name!r}: " if series.name else ""
        rule = f"{named}the last {length} steps are without a gap"
        raise InputError(field, source, f"{rule}, expected model.context_length={model.context_length}")
    after = f"row {series.rows[-1]}"
    if series.times is not None:
        ticks = series.times.instants if series.wall is None else series.wall
        after = shown(int(ticks[-1]), series.times.counted)
    values = torch.from_numpy(series.values[:, -model.context_length :].copy())
    return History(series.name, channels, after, values)
