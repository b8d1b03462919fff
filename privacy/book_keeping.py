"""Book-keeping: clipped gradient sums from one forward and one backward pass (Bu et al. 2023, ICML).

No per-example gradient is ever formed. A layer's weight gradient for one example is a product of what went in
and of what came back, g^T a, so its norm follows from small Gram matrices and the clipped sum from one
matrix product in which each example's g carries its clip factor. Everything below is float64, in which no
float32 value under- or overflows when squared.

The calls of one layer, and the noise draws of one example, are joined along time: the norm of their summed
gradient is then exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """How one kind of layer turns (a, g) into per-example squared norms and weighted sums.

    a is what the layer read and g the gradient at its output, (n, T, ...) each with time flattened to T.
    `squared_norms` -> (n,) over the layer's trainable parameters; `weighted_sum(layer, a, g)` -> gradient of
    each trainable parameter by name, where g has been scaled by the clip factors.
    """

    squared_norms: Callable[[nn.Module, Tensor, Tensor], Tensor]
    weighted_sum: Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]]


def _trains(layer: nn.Module, name: str) -> bool:
    parameter = getattr(layer, name, None)
    return parameter is not None and bool(parameter.requires_grad)


def _linear_norms(layer: nn.Module, a: Tensor, g: Tensor) -> Tensor:
    total = g.new_zeros(len(g))
    if _trains(layer, "weight"):
        t, d, p = a.shape[1], a.shape[2], g.shape[2]
        if t * (d + p) <= d * p:  # cheaper as sum over s, t of (a_s . a_t)(g_s . g_t)
            total = total + ((a @ a.mT) * (g @ g.mT)).sum(dim=(1, 2))
        else:
            total = total + (g.mT @ a).square().sum(dim=(1, 2))
    if _trains(layer, "bias"):
        total = total + g.sum(dim=1).square().sum(dim=1)
    return total


def _linear_sum(layer: nn.Module, a: Tensor, g: Tensor) -> dict[str, Tensor]:
    sums = {}
    if _trains(layer, "weight"):
        sums["weight"] = g.flatten(0, 1).T @ a.flatten(0, 1)  # (p, d)
    if _trains(layer, "bias"):
        sums["bias"] = g.sum(dim=(0, 1))
    return sums


def _embedding_norms(layer: nn.Module, a: Tensor, g: Tensor) -> Tensor:
    same = (a[:, :, None] == a[:, None, :]).to(g.dtype)  # (n, T, T): rows of the table that coincide
    return (same * (g @ g.mT)).sum(dim=(1, 2))


def _embedding_sum(layer: nn.Module, a: Tensor, g: Tensor) -> dict[str, Tensor]:
    assert isinstance(layer, nn.Embedding)
    table = g.new_zeros(layer.num_embeddings, layer.embedding_dim)
    return {"weight": table.index_add_(0, a.flatten(), g.flatten(0, 1))}


def _normalised(layer: nn.Module, a: Tensor) -> Tensor:
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    assert isinstance(layer, nn.RMSNorm)
    # The layer ran in the input's own precision, whose epsilon is its default.
    eps = layer.eps if layer.eps is not None else torch.finfo(layer.weight.dtype).eps
    return F.rms_norm(a, layer.normalized_shape, eps=eps)


def _norm_gradients(layer: nn.Module, a: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Per-example gradients; they are as small as the layer's input, so they are simply formed."""
    gradients = {}
    if _trains(layer, "weight"):
        gradients["weight"] = (g * _normalised(layer, a)).sum(dim=1)  # (n, d)
    if _trains(layer, "bias"):
        gradients["bias"] = g.sum(dim=1)
    return gradients


def _norm_norms(layer: nn.Module, a: Tensor, g: Tensor) -> Tensor:
    gradients = _norm_gradients(layer, a, g).values()
    return torch.stack([gradient.square().sum(dim=1) for gradient in gradients]).sum(dim=0)


def _norm_sum(layer: nn.Module, a: Tensor, g: Tensor) -> dict[str, Tensor]:
    return {name: gradient.sum(dim=0) for name, gradient in _norm_gradients(layer, a, g).items()}


_NORM = Layer(_norm_norms, _norm_sum)

LAYERS: dict[type[nn.Module], Layer] = {
    nn.Linear: Layer(_linear_norms, _linear_sum),
    nn.Embedding: Layer(_embedding_norms, _embedding_sum),
    nn.LayerNorm: _NORM,
    nn.RMSNorm: _NORM,
}


def joined(uses: list[tuple[Tensor, Tensor]], examples: int) -> tuple[Tensor, Tensor]:
    """The uses of one layer as one (a, g), all rows of one example side by side: (n, T, ...) each."""
    inputs, gradients = [], []
    for a, g in uses:
        gradients.append(g.double().reshape(examples, -1, g.shape[-1]))
        rows = (examples, -1, a.shape[-1]) if a.is_floating_point() else (examples, -1)
        inputs.append((a.double() if a.is_floating_point() else a).reshape(rows))
    return torch.cat(inputs, dim=1), torch.cat(gradients, dim=1)
