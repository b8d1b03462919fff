"""The future of each series in a table, with the interval that most of the drawn futures lie in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ...blocks.denoiser import Denoiser
from ...blocks.families.forecaster import Forecaster, forecast
from ...blocks.model_file import ModelCard
from ...blocks.settings import SeriesSettings
from ...errors import InputError
from ...settings import DataSource
from ...settings.contract import SeriesContract
from ..data.findings import Findings
from ..data.one_line import told_in_one_line
from ..data.series.histories import load_histories
from .columns import Column, Predictions
from .request import INPUT, Wanted, contract_for

SAMPLES, INTERVAL = 100, 0.8
_LEAST = 10  # samples: of fewer an interval says nothing


def forecasts(
    model: Denoiser,
    card: ModelCard,
    wanted: Wanted,
    findings: Findings,
    on_done: Callable[[int, int], None],
) -> Predictions:
    """Columns series, channel, after (the last known time), step (1 to horizon), mean, median, low and high.

    A row for each step of each channel, in the series' own units. `samples` futures are drawn, 100 if not said; a
    share `interval` of them, 0.8 if not said, lies between low and high.
    """
    settings = card.model
    assert isinstance(settings, SeriesSettings)
    if not isinstance(model, Forecaster):
        raise InputError("model", settings.family, "no forecast is known for models of this family")
    samples = SAMPLES if wanted.samples is None else wanted.samples
    share = INTERVAL if wanted.interval is None else wanted.interval
    if samples < _LEAST:
        raise InputError("--samples", samples, f"expected {_LEAST} or more, for an interval")
    if not 0 < share < 1:
        raise InputError("--interval", share, "expected a share between 0 and 1")
    contract = contract_for(card, wanted, SeriesContract)
    source = DataSource(source=wanted.source or "")
    with told_in_one_line(INPUT, source.source):
        histories = load_histories(INPUT, source, settings, contract, findings)
    rows: list[dict[str, Column]] = []
    for i, history in enumerate(histories):
        generator = torch.Generator().manual_seed(wanted.seed)
        drawn = forecast(model, history.values[None], generator, samples=samples)[0].numpy()
        low, median, high = np.quantile(
            drawn, [(1 - share) / 2, 0.5, (1 + share) / 2], axis=0
        )  # (C, horizon)
        mean, horizon = drawn.mean(axis=0), settings.horizon
        for c, channel in enumerate(history.channels):
            rows.append(
                {
                    "series": np.full(horizon, history.series),
                    "channel": np.full(horizon, channel),
                    "after": np.full(horizon, history.after),
                    "step": np.arange(1, horizon + 1),
                    "mean": mean[c], "median": median[c], "low": low[c], "high": high[c],
                }
            )  # fmt: skip
        on_done(i + 1, len(histories))
    return Predictions("forecast", {name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
