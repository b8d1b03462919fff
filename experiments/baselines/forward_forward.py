"""Forward-Forward (Hinton 2022, arXiv 2212.13345): every layer learns from its own goodness alone.

The label is written over the image's first pixels. A layer shall have a high mean square activity, its
goodness, where image and label belong together and a low one where the label is wrong. Its input is
normalised, so that the goodness of the layer before tells nothing, and cut from the graph. An image gets the
label under which the layers after the first are most active (section 3.3). The layers are those of the plain
vision transformer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...blocks.transformer import Layer
from .end_to_end import PlainViT

THRESHOLD = 2.0


class ForwardForward(nn.Module):
    """Images (N, C, H, W) in [0, 1], labels in [0, classes), classes <= C H W."""

    def __init__(self, network: PlainViT, generator: torch.Generator) -> None:
        super().__init__()
        self.network, self.generator = network, generator
        self.classes = network.head.out_features
        network.norm.requires_grad_(False)  # the readout of the plain network has no part in this
        network.head.requires_grad_(False)

    def goodness(self, images: Tensor) -> list[Tensor]:
        """Of each layer, (N,)."""
        x = self.network.tokens(images)
        found = []
        for i, layer in enumerate(self.network.layers):
            assert isinstance(layer, Layer)
            # The embedding has no goodness of its own and learns with the first layer.
            x = layer.clean(F.layer_norm(x if i == 0 else x.detach(), x.shape[-1:]))  # (N, T, D)
            found.append(x.square().mean(dim=(1, 2)))
        return found

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """log(1 + exp(-+(goodness - threshold))) of right and wrong labels, summed over layers: (N,)."""
        step = torch.randint(1, self.classes, labels.shape, generator=self.generator)
        wrong = (labels + step) % self.classes
        both = torch.cat([overlaid(images, labels, self.classes), overlaid(images, wrong, self.classes)])
        sign = torch.ones(len(both)).index_fill(0, torch.arange(len(labels)), -1.0)
        each = [F.softplus(sign * (g - THRESHOLD)) for g in self.goodness(both)]
        return torch.stack(each).sum(dim=0).view(2, -1).mean(dim=0)

    def forward(self, images: Tensor) -> Tensor:
        """Goodness of every label, summed over the layers after the first: (N, classes)."""
        columns = []
        for label in range(self.classes):
            labels = torch.full((len(images),), label)
            of_layers = self.goodness(overlaid(images, labels, self.classes))
            columns.append(torch.stack(of_layers[1:] or of_layers).sum(dim=0))
        return torch.stack(columns, dim=1)


def overlaid(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The first `classes` pixels of each image replaced by its label, one-hot."""
    flat = images.flatten(1)
    return torch.cat([F.one_hot(labels, classes).to(flat), flat[:, classes:]], dim=1).view_as(images)
