"""How far a difference of two qualities may be chance, for metrics that are means over examples but no shares.

The examples are cut into parts of neighbours (windows of one document stay together as far as that goes); both
models, or both places of the chain, are judged on each part, and Student's interval of the differences says how far
another sample of examples would have moved it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from ...blocks import Denoiser
from ...blocks.examples import Examples

PARTS = 10
LEAST = 3 * PARTS  # examples


def half_width(before: Denoiser, after: Denoiser, data: Examples, seed: int) -> float | None:
    """Of the 95% interval around after - before; none for too few examples."""
    found = [
        _after_each_block(after, part, seed)[-1] - _after_each_block(before, part, seed)[-1]
        for part in _parts(data)
    ]
    return _half(np.array(found)) if found else None


def step_half_widths(model: Denoiser, data: Examples, seed: int) -> tuple[float, ...]:
    """Of each block but the first: of the interval around the step that the chain takes there; empty for too few
    examples."""
    found = [np.diff(_after_each_block(model, part, seed)) for part in _parts(data)]
    return tuple(_half(column) for column in np.array(found).T) if found else ()


def _parts(data: Examples) -> list[Examples]:
    if len(data) < LEAST:
        return []
    return [data[rows] for rows in np.array_split(np.arange(len(data)), PARTS)]


def _after_each_block(model: Denoiser, part: Examples, seed: int) -> list[float]:
    return model.chain_quality(part.inputs, part.targets, torch.Generator().manual_seed(seed))


def _half(values: npt.NDArray[np.float64]) -> float:
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
