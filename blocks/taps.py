"""What an example consists of, and where a block's weights read it: for the audit, which looks for both in gradients.

A tap is a weight whose gradient is a sum of outer products with an input that is a known function of one part of the
example: whoever sees that gradient can enumerate the inputs, or solve for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .text_prefixes import TextPrefixes

Norm = Literal["layer", "rms", "none"]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One unknown of an example.

    `classes`: how many values it may take, none: real values within `bounds`. `nuisance`: drawn in training by a
    law that everybody knows, once a draw. `what`: for figures and sentences. `side`: where a model reads it.
    """

    name: str
    shape: tuple[int, ...]
    what: Literal[
        "image", "series", "numbers", "codes", "tokens", "label", "number", "level", "noise", "mask"
    ]
    classes: int | None = None
    bounds: tuple[float, float] | None = None
    nuisance: bool = False
    side: Literal["inputs", "targets", "both", "draw"] = "draw"

    @property
    def continuous(self) -> bool:
        return self.classes is None


@dataclass(frozen=True, kw_only=True)
class ContinuousTap:
    """Token t enters `weight` as norm(embedding[t] @ part_t + offset[t]), part_t (p,) cut from a real field.

    `rows`: those rows of the weight's gradient that only such tokens feed, as far as that is so. `cut` takes values
    (N, *shape) to parts (N, T, p), `join` is its inverse. Into the same rows go `others` further tokens of an example
    and `noisy` ones of every noise draw. `shown`: how many directions of the rows a draw's gradient has at most, none
    where that is no limit. `noisy_basis` (D, m): where a draw has one noisy token, the space in which it lies.
    """

    field: str
    weight: str
    rows: slice
    embedding: Tensor  # (T, D, p)
    offset: Tensor  # (T, D)
    norm: Norm
    cut: Callable[[Tensor], Tensor]
    join: Callable[[Tensor], Tensor]
    others: int = 0
    noisy: int = 1
    shown: int | None = None
    noisy_basis: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Modulation:
    """How a noise level changes what enters a layer (adaLN): `apply` takes normalised tokens (..., D) and the level's
    embedding (D,) to what enters; `curve` gives the embeddings of levels, (G,) -> (G, D).

    The gradient of each of `weights` is a sum of outer products with the embeddings of the draws' levels.
    """

    weights: tuple[str, ...]
    curve: Callable[[Tensor], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class TokenTap:
    """A token of value v at place t enters `weight` as norm(table[v] + offset[t]), modulated where there is one.

    `offset`: of one row where places do not matter. `nuisance`: how many further directions the noisy tokens add to
    the rows' span, for each token of the example and each draw.
    """

    field: str
    weight: str
    rows: slice
    table: Tensor  # (V, D)
    offset: Tensor  # (T, D) or (1, D)
    norm: Norm
    nuisance: int
    modulation: Modulation | None = None


@dataclass(frozen=True, kw_only=True)
class ValueTap:
    """A token enters `weight` as a function of its value and place alone, whatever that is: pretrained embeddings.

    `enter` takes values (n,) and places (m,) to what enters, (n, m, D).
    """

    field: str
    weight: str
    rows: slice
    enter: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class PrefixTap:
    """The token at place t enters `weight` as a function of the tokens up to t: causal models.

    `enter` takes tokens (N, t) to all that enters, (N, t, D), normalised; `prefixes` starts a search that gives the
    same token by token. `nuisance` as in `TokenTap`.
    """

    field: str
    weight: str
    rows: slice
    enter: Callable[[Tensor], Tensor]
    prefixes: Callable[[], TextPrefixes]
    nuisance: int


@dataclass(frozen=True, kw_only=True)
class NoisedTap:
    """Part u_t (p,) of the noised target enters `weight` as norm(embedding @ u_t + offset[t]), modulated by draw.

    `cut` takes noised targets (N, *shape of the clean target) to parts (N, T, p), `join` is its inverse; `factor`
    is what a target of a log sigma is multiplied by before. `rows`: as in `ContinuousTap`; so many `others` of an
    example's tokens, the same for all draws, go into them. What modulates is `modulation.curve` of the log sigma,
    plus the row of `labels` (classes, D) where there are some. `readout`: the last weight that a block trains.
    """

    field: str
    weight: str
    rows: slice
    embedding: Tensor  # (D, p)
    offset: Tensor  # (T, D)
    cut: Callable[[Tensor], Tensor]
    join: Callable[[Tensor], Tensor]
    factor: Callable[[Tensor], Tensor]
    modulation: Modulation
    readout: str
    labels: Tensor | None = None
    others: int = 0


Tap = ContinuousTap | TokenTap | ValueTap | PrefixTap | NoisedTap


def affine_tap(
    field: str,
    embedding: nn.Module,
    position: nn.Module,
    *,
    cut: Callable[[Tensor], Tensor],
    join: Callable[[Tensor], Tensor],
    noisy: int = 1,
    shown: int | None = None,
    noisy_basis: Tensor | None = None,
) -> ContinuousTap:
    """Parts that one linear map embeds, at learnt positions, into the keys and values of the first layer."""
    assert isinstance(embedding, nn.Linear)
    assert isinstance(position, nn.Embedding)
    width, tokens = embedding.out_features, position.num_embeddings
    weight = embedding.weight.detach()
    bias = torch.zeros(width).to(weight) if embedding.bias is None else embedding.bias.detach()
    return ContinuousTap(
        field=field,
        weight="layers.0.qkv.weight",
        rows=slice(width, 3 * width),
        embedding=weight.expand(tokens, *weight.shape),
        offset=position.weight.detach() + bias,
        norm="layer",
        cut=cut,
        join=join,
        noisy=noisy,
        shown=shown,
        noisy_basis=noisy_basis,
    )


def normalised(tokens: Tensor, norm: Norm) -> Tensor:
    """Tokens (..., D) as they enter a layer's first linear map; epsilon as in `blocks.transformer`."""
    if norm == "layer":
        return F.layer_norm(tokens, tokens.shape[-1:])
    if norm == "rms":
        return F.rms_norm(tokens, tokens.shape[-1:], eps=1e-5)
    return tokens
