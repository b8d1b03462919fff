"""How large a model is, known from its settings before any of it is in memory."""

from __future__ import annotations

from functools import lru_cache

import torch

from .build import build_model, network_of
from .families import ModelSettings
from .settings import NoiseSettings

# A family lays out its layers anew every so many: the looped model has a prelude of a quarter.
_PERIOD = 4


@lru_cache(maxsize=64)
def parameters_of(model: ModelSettings) -> int:
    """How many values a model of these settings holds: all blocks, embeddings and readouts, and the fixed tables.

    Built without memory (PyTorch's device "meta"), and no deeper than two periods of layers, of which deeper blocks
    have more: it takes some milliseconds for whatever settings.
    """
    if not network_of(model).blocks_alike:
        with torch.device("meta"):
            return sum(tensor.numel() for tensor in build_model(model, NoiseSettings()).state_dict().values())
    each = model.layers // model.blocks
    built = each if each < 2 * _PERIOD else _PERIOD + each % _PERIOD
    shared, block = _sizes(model, built)
    if built < each:
        period = _sizes(model, built + _PERIOD)[1] - block
        block += (each - built) // _PERIOD * period
    return shared + model.blocks * block


def _sizes(model: ModelSettings, layers: int) -> tuple[int, int]:
    """Values of the shared part, and of a block of `layers` layers."""
    with torch.device("meta"):
        built = build_model(model.model_copy(update={"layers": layers, "blocks": 1}), NoiseSettings())
    whole = sum(tensor.numel() for tensor in built.state_dict().values())
    block = sum(tensor.numel() for tensor in built.blocks.state_dict().values())
    return whole - block, block
