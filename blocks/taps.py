"""What an example consists of, and where a block's weights read it: for the audit, which looks for both in gradients.

A tap is a weight whose gradient is a sum of outer products with an input that is a known function of one part of the
example: whoever sees that gradient can enumerate the inputs, or solve for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

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
    (N, *shape) to parts (N, T, p), `join` is its inverse.
    """

    field: str
    weight: str
    rows: slice
    embedding: Tensor  # (T, D, p)
    offset: Tensor  # (T, D)
    norm: Norm
    cut: Callable[[Tensor], Tensor]
    join: Callable[[Tensor], Tensor]


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
class PrefixTap:
    """The token at place t enters `weight` as `enter(tokens)[:, t]`, a function of the tokens up to t: causal models.

    `enter` takes tokens (N, t) to (N, t, D), normalised. `nuisance` as in `TokenTap`.
    """

    field: str
    weight: str
    rows: slice
    enter: Callable[[Tensor], Tensor]
    nuisance: int


Tap = ContinuousTap | TokenTap | PrefixTap


def normalised(tokens: Tensor, norm: Norm) -> Tensor:
    """Tokens (..., D) as they enter a layer's first linear map; epsilon as in `blocks.transformer`."""
    if norm == "layer":
        return F.layer_norm(tokens, tokens.shape[-1:])
    if norm == "rms":
        return F.rms_norm(tokens, tokens.shape[-1:], eps=1e-5)
    return tokens
