"""End-to-end backpropagation of a plain vision transformer: no noise, no modulation, one loss at the end.

The same layers as a block's (their clean stream), so that ours and this differ in how they are trained.
With `layers` divided by the number of blocks it is the shallow control: what one block's depth can do alone.
With `checkpointing` only each layer's input is kept for the backward pass, the rest computed again (Chen et
al. 2016, arXiv 1604.06174): the usual way to save activations, at a third more time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...blocks.patches import patches_of, placed, positions
from ...blocks.transformer import Layer, Shape, initialise


class PlainViT(nn.Module):
    """Images (N, C, H, W) -> logits (N, classes), read off a class token (the mean does no better)."""

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        patch_size: int,
        hidden_size: int,
        layers: int,
        heads: int,
        classes: int,
        mlp_ratio: float = 4.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size, self.checkpointing = patch_size, checkpointing
        self.patch = nn.Linear(channels * patch_size**2, hidden_size)
        self.position = positions((image_size // patch_size) ** 2, hidden_size)
        self.token = positions(1, hidden_size)
        shape = Shape(hidden_size=hidden_size, heads=heads, mlp_ratio=mlp_ratio)
        self.layers = nn.ModuleList(plain_layer(shape) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, classes)
        initialise(self)

    def tokens(self, images: Tensor) -> Tensor:
        """The class token and the embedded patches: (N, 1 + T, D)."""
        x = self.patch(patches_of(images, self.patch_size)) + placed(self.position, images)
        return torch.cat([placed(self.token, images), x], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(images)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            x = checkpoint(layer.clean, x, use_reentrant=False) if self.checkpointing else layer.clean(x)
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each example, (N,)."""
        return F.cross_entropy(self(images), labels, reduction="none")


def plain_layer(shape: Shape) -> Layer:
    """A layer without modulation: its clean stream is an ordinary pre-norm transformer layer."""
    layer = Layer(shape)
    del layer.modulation
    return layer
