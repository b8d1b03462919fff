"""One forward and backward pass of examples through a block, recorded layer by layer for clipped sums.

Only layers with trainable parameters are recorded: their input activations and their output gradients. Per-example
norms are computed during the backward pass (see `book_keeping`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from .book_keeping import Norms, Use, gradients_of, gram_ahead
from .grouping import Grouping, grouping


class Part(Protocol):
    """The gradients of some parameters of one layer; see `book_keeping`."""

    rows: int  # products that one example adds to a value of the sum; 0 if these are added in float64

    def norms(self) -> Norms: ...
    def tensors(self) -> list[Tensor]: ...
    def add_weighted_sum(self, factors: Tensor, sums: Mapping[str, Tensor], group: int) -> None: ...


@dataclass
class LayerGradients:
    """What norms and sums need of one layer's gradients of n examples."""

    module: nn.Module
    parts: list[Part]
    groups: list[Grouping]
    squared_norms: Tensor  # (n,) float64
    costs: dict[int, Tensor]  # squared cost of rounding, (n,) float64, by group size


@dataclass
class Pass:
    """One forward and backward pass of n examples."""

    examples: int
    edges: list[GradientEdge] = field(default_factory=list)  # of the layers' outputs, which are not kept
    called: list[nn.Module] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    # By number of the call, until its gradient arrives: the input activations and their Gram matrices.
    inputs: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    waiting: Counter[nn.Module] = field(default_factory=Counter)  # calls whose gradient has not come yet
    uses: dict[nn.Module, list[Use]] = field(default_factory=dict)
    layers: list[LayerGradients] = field(default_factory=list)
    hooks: list[RemovableHandle] = field(default_factory=list)

    def call(self, layer: nn.Module, a: Tensor, output: Tensor) -> None:
        number = len(self.called)
        self.edges.append(get_gradient_edge(output))
        self.inputs[number] = a, gram_ahead(layer, a, self.examples)
        self.called.append(layer)
        self.rows.append(len(output))
        self.waiting[layer] += 1
        self.hooks.append(output.register_hook(lambda g: self.arrived(number, g)))

    def arrived(self, number: int, g: Tensor) -> None:
        """Takes an output gradient; norms are computed as soon as a layer's last one is there and in cache."""
        layer = self.called[number]
        a, gram = self.inputs.pop(number)
        self.uses.setdefault(layer, []).append(Use(a, g, gram))
        self.waiting[layer] -= 1
        if self.waiting[layer] == 0:
            self.close(layer)

    def end(self) -> None:
        """Free the graph at once: it and the hooks refer to each other."""
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()
        self.edges.clear()

    def close(self, layer: nn.Module) -> None:
        parts: list[Part] = list(gradients_of(layer, self.uses.pop(layer), self.examples))
        norms = [part.norms() for part in parts]
        squared = norms[0].squared.double()
        for found in norms[1:]:
            squared = squared + found.squared
        costs: dict[int, Tensor] = {}
        groups = []
        for part, found in zip(parts, norms, strict=True):
            group = grouping(part.rows, torch.promote_types(found.mass.dtype, torch.float32))
            groups.append(group)
            if part.rows:
                cost = (found.mass.double() * group.cost).square_()
                costs[group.size] = costs[group.size] + cost if group.size in costs else cost
        self.layers.append(LayerGradients(layer, parts, groups, squared, costs))
