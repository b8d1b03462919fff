"""What architectures with rotary positions or windows share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....errors import InputError

# The others stretch their frequencies to the longest text of a batch, so what a text gives would depend on its batch.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def refuse_rope(config: Any) -> None:
    """Raises InputError for rotary positions whose frequencies change with the length of the input."""
    parameters = config.rope_parameters or {}
    for each in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
        kind = each.get("rope_type", "default")
        if kind not in _ROPE_TYPES:
            raise InputError("config.json: rope_type", kind, f"must be one of {', '.join(_ROPE_TYPES)}")


def within(allowed: Tensor | None, positions: Tensor, window: int, device: torch.device) -> Tensor | None:
    """`allowed` where two positions are less than `window` apart; itself where all are.

    The window is applied to both sides: in a causal model `allowed` has no later token anyway.
    """
    if int(positions.max() - positions.min()) < window:
        return allowed
    near = (positions[:, None] - positions[None, :]).abs() < window
    near = near.to(device)[None, None]
    return near if allowed is None else allowed & near
