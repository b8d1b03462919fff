"""The oracle of per-example clipping: a loop over the examples, one plain backward pass each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import torch
from torch import Tensor, nn

from fedblocks.privacy.clipping import Clipping, lowered
from support.places import only

Gradients = dict[str, Tensor]
"""One example's gradient in float64, by the parameters' names in the order in which updates are flattened."""
Rule = Callable[[Gradients], Tensor]
"""One example's clipped contribution (P,)."""


def gradients_one_by_one(
    block: nn.Module, losses: Callable[[Tensor], Tensor], *, examples: int, draws: int = 1
) -> list[Gradients]:
    """Each example's gradient of the mean loss of its draws; `losses` of places (n,) are of (n draws,)."""
    named = sorted((name, p) for name, p in block.named_parameters() if p.requires_grad)
    found = []
    for i in range(examples):
        loss = losses(only(i)).sum() / draws
        gradients = torch.autograd.grad(loss, [p for _, p in named], materialize_grads=True)
        found.append({name: g.double() for (name, _), g in zip(named, gradients, strict=True)})
    return found


def clipped_sum(gradients: list[Gradients], rule: Rule) -> Tensor:
    """(P,) float64."""
    return torch.stack([rule(each) for each in gradients]).sum(dim=0)


def flattened(gradients: Gradients) -> Tensor:
    return torch.cat([g.flatten() for g in gradients.values()])


def norm_of(gradients: Gradients) -> float:
    return float(flattened(gradients).norm())


def flat(bound: float, precision: torch.dtype = torch.float32) -> Rule:
    """g min(1, C / |g|)"""
    least = torch.finfo(torch.float64).tiny  # a gradient of zero stays one
    return lambda gradients: (
        flattened(gradients) * min(1.0, lowered(bound, precision) / max(norm_of(gradients), least))
    )


def per_layer(bound: float, precision: torch.dtype = torch.float32) -> Rule:
    """Each of L layers to C / sqrt(L); a layer's parameters stand side by side in the order of names."""

    def layer_of(name: str) -> str:
        return name.rpartition(".")[0]

    def clip(gradients: Gradients) -> Tensor:
        layers = [list(names) for _, names in groupby(gradients, layer_of)]
        own = flat(bound / len(layers) ** 0.5, precision)
        return torch.cat([own({name: gradients[name] for name in names}) for names in layers])

    return clip


def automatic(bound: float, precision: torch.dtype = torch.float32) -> Rule:
    """g C / (|g| + 0.01)"""
    return lambda gradients: flattened(gradients) * lowered(bound, precision) / (norm_of(gradients) + 0.01)


RULES: dict[Clipping, Callable[..., Rule]] = {"flat": flat, "per-layer": per_layer, "automatic": automatic}
