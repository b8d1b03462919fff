"""Layers that hand given gradients to the sum, one for each way in which the engine forms and adds them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .neighbours import Examples


class Weight(nn.Module):
    """The weight of a linear map by what it reads: one product over all examples."""

    def __init__(self, table: Tensor, outputs: int = 1, rows: int = 1) -> None:
        super().__init__()
        self.table, self.rows = table, rows
        self.layer = nn.Linear(2, outputs, bias=False)

    def losses(self, numbers: Tensor) -> Tensor:
        x = (self.table[numbers] / self.rows)[:, None].expand(-1, self.rows, -1)
        out: Tensor = self.layer(x)[..., 0].flatten(1).sum(dim=1)
        return out


class Bias(nn.Module):
    """A bias by the gradient of what the layer gave."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table, self.layer = table, nn.Linear(2, 2)
        self.layer.weight.requires_grad_(False)

    def losses(self, numbers: Tensor) -> Tensor:
        g = self.table[numbers]
        losses: Tensor = (self.layer(torch.zeros_like(g)) * g).sum(dim=1)
        return losses


class Table(nn.Module):
    """One row of an embedding, which all examples read."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table, self.layer = table, nn.Embedding(3, 2)

    def losses(self, numbers: Tensor) -> Tensor:
        rows = self.layer(torch.zeros(len(numbers), 1, dtype=torch.long))[:, 0]
        losses: Tensor = (rows * self.table[numbers]).sum(dim=1)
        return losses


class Scale(nn.Module):
    """Scale and shift of a layer norm: gradients that are formed, then weighed."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table, self.layer = table, nn.LayerNorm(2)

    def losses(self, numbers: Tensor) -> Tensor:
        g = self.table[numbers]
        read = torch.tensor([1.0, -1.0]).expand(len(g), -1)
        losses: Tensor = (self.layer(read) * g).sum(dim=1) / 2**0.5
        return losses


class Patches(nn.Module):
    """A convolution over one patch."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table, self.layer = table, nn.Conv2d(2, 1, 1, bias=False)

    def losses(self, numbers: Tensor) -> Tensor:
        out: Tensor = self.layer(self.table[numbers][:, :, None, None]).flatten(1)[:, 0]
        return out


class Cancelling(nn.Module):
    """Two rows of one example whose gradients are large and cancel but for the table's values."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table, self.layer = table, nn.Linear(2, 4, bias=False)

    def losses(self, numbers: Tensor) -> Tensor:
        x = self.table[numbers]
        out = self.layer(torch.stack([x + 256.0, torch.full_like(x, -256.0)], dim=1))
        total: Tensor = out[..., 0].sum(dim=1)
        return total


LAYERS: dict[str, Callable[[Tensor], nn.Module]] = {
    "linear": Weight,
    "linear 2 to 16": lambda table: Weight(table, outputs=16),
    "linear, 40 rows": lambda table: Weight(table, rows=40),
    "bias": Bias,
    "embedding": Table,
    "layer norm": Scale,
    "convolution": Patches,
    "rows that cancel": Cancelling,
}


def handing(layer: str, table: Tensor) -> Examples:
    """Examples whose gradients are the table's rows, by a layer of this kind."""
    block = LAYERS[layer](table)
    losses: Callable[[Tensor], Tensor] = block.losses  # type: ignore[assignment]
    return Examples(block, losses)
