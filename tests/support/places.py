"""Where the noise draws of examples stand: those of one example side by side."""

from __future__ import annotations

import torch
from torch import Tensor


def draws_of(places: Tensor, draws: int) -> Tensor:
    """Places of examples (n,) -> places of their draws (n draws,)."""
    return (places[:, None] * draws + torch.arange(draws)).flatten()


def only(place: int) -> Tensor:
    """The places of one example."""
    return torch.tensor([place])
