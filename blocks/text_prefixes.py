"""Many prefixes of texts side by side, and what each next token would enter a layer as: keys and values are kept.

Purpose: whoever searches for a text from its start tries every token after every prefix; without what is kept here
that costs a whole pass over each prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .transformer import KeysValues, Layer


@dataclass(frozen=True)
class Stage:
    """One block's clean stream as far as it is read: `embed` takes tokens (N, t) to (N, t, D), then come `layers`."""

    embed: Callable[[Tensor], Tensor]
    layers: Sequence[Layer]


class TextPrefixes:
    """`stages`: the blocks that are read, each adding its embedding to the normalised output of the one before.

    prefixes = TextPrefixes(stages)
    inputs = prefixes.choices(values)          # (1, m, D): each of values (m,) as the first token
    prefixes.extend(parents, tokens)           # (B,) of the former prefixes, and the token that each goes on with
    inputs = prefixes.choices(values)          # (B, m, D)
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages
        self._kept: dict[Layer, KeysValues] = {}
        self._count = 1

    @torch.no_grad()
    def read(self, tokens: Tensor) -> Tensor:
        """What comes out for tokens (N, t) that follow what was read before: (N, t, D)."""
        self._count = len(tokens)
        return self._run(tokens, choose=False)

    @torch.no_grad()
    def choices(self, values: Tensor) -> Tensor:
        """What comes out of the last stage at the next place, normalised, for each of values (m,): (B, m, D)."""
        return self._run(values.expand(self._count, -1), choose=True)

    @torch.no_grad()
    def extend(self, parents: Tensor, tokens: Tensor) -> None:
        self._kept = {layer: (k[parents], v[parents]) for layer, (k, v) in self._kept.items()}
        self.read(tokens[:, None])

    def _run(self, tokens: Tensor, choose: bool) -> Tensor:
        made: Tensor | None = None
        x = tokens
        for stage in self._stages:
            x = stage.embed(tokens)
            if made is not None:
                x = x + made
            for layer in stage.layers:
                if choose:
                    x = layer.clean_choices(x, self._kept.get(layer))
                else:
                    x, self._kept[layer] = layer.clean_step(x, self._kept.get(layer))
            made = F.layer_norm(x, x.shape[-1:])
        return F.rms_norm(x, x.shape[-1:], eps=1e-5)
