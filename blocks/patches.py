"""Images as patches, and the learned positions of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def positions(count: int, hidden_size: int) -> nn.Embedding:
    """Learned positions; an Embedding rather than a bare parameter, so that it has per-example gradients."""
    table = nn.Embedding(count, hidden_size)
    nn.init.normal_(table.weight, std=0.02)
    return table


def placed(position: nn.Module, inputs: Tensor) -> Tensor:
    """All of a position table for each example: (N, T, D)."""
    assert isinstance(position, nn.Embedding)
    every = torch.arange(position.num_embeddings, device=inputs.device)
    rows: Tensor = position(every.expand(len(inputs), -1))
    return rows


def patches_of(images: Tensor, patch_size: int) -> Tensor:
    """(N, C, H, W) -> (N, T, C p^2), row by row."""
    n, c, h, w = images.shape
    p = patch_size
    cut = images.reshape(n, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)  # (N, H/p, W/p, C, p, p)
    return cut.reshape(n, (h // p) * (w // p), c * p * p)


def images_of(patches: Tensor, shape: torch.Size, patch_size: int) -> Tensor:
    """The inverse of `patches_of`: (N, T, C p^2) and (C, H, W) -> (N, C, H, W)."""
    c, h, w = shape
    p = patch_size
    cut = patches.reshape(len(patches), h // p, w // p, c, p, p)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(len(patches), c, h, w)  # (N, C, H/p, p, W/p, p)
