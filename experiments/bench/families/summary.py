"""From the three models' measurements to a bench row."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any


def summary(after_each_block: dict[str, list[list[float]]]) -> dict[str, Any]:
    """`after_each_block[kind][seed]` are the measurements after each block; the last is the model's own."""
    final = {kind: [chain[-1] for chain in runs] for kind, runs in after_each_block.items()}
    row: dict[str, Any] = {}
    for kind, values in final.items():
        row[kind] = fmean(values)
        row[f"{kind}_std"] = _deviation(values)
    row["ratio"] = row["ours"] / row["end_to_end"]
    row["after_each_block"] = [fmean(values) for values in zip(*after_each_block["ours"], strict=True)]
    return row


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
