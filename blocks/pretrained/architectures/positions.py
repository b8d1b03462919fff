"""What architectures with rotary positions or windows share."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from ....errors import InputError

FULL, SLIDING = "full_attention", "sliding_attention"
# The others stretch their frequencies to the longest text of a batch, so what a text gives would depend on its batch.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def refuse_rope(config: Any) -> None:
    """Raises InputError for rotary positions whose frequencies change with the length of the input."""
    parameters = config.rope_parameters or {}
    for each in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
        kind = each.get("rope_type", "default")
        if kind not in _ROPE_TYPES:
            raise InputError("config.json: rope_type", kind, f"must be one of {', '.join(_ROPE_TYPES)}")


def refuse_windows(kinds: Collection[str], window: int | None) -> None:
    """Raises InputError for layers of another kind than those computed here, or whose window is empty."""
    for kind in sorted(set(kinds) - {FULL, SLIDING}):
        raise InputError("config.json: layer_types", kind, f"must be {FULL} or {SLIDING}")
    if SLIDING in kinds and (window is None or window < 1):
        raise InputError("config.json: sliding_window", window, "must be at least 1")


def within(
    allowed: Tensor | None,
    positions: Tensor,
    window: int,
    device: torch.device,
    seen: Tensor | None = None,
) -> Tensor | None:
    """`allowed` where two positions are less than `window` apart; itself where all are.

    `seen`: the positions of the columns, where they are not those of the rows. The window is applied to both sides:
    in a causal model `allowed` has no later token anyway.
    """
    apart = (positions[:, None] - (positions if seen is None else seen.to(positions.device))[None, :]).abs()
    if int(apart.max()) < window:
        return allowed
    near = apart < window
    near = near.to(device)[None, None]
    return near if allowed is None else allowed & near
