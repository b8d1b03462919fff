"""GPT-2 (Radford et al. 2019): a decoder with learned positions. Its layers' `Conv1D` are linear maps here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ....errors import InputError
from .common import DecoderTrunk
from .llama import everywhere


class GPT2Trunk(DecoderTrunk):
    package = "gpt2"
    config_class = "GPT2Config"
    classes = ("GPT2Model", "GPT2LMHeadModel")
    layers_at = "h"
    parts = ("wte", "wpe", "ln_f")

    wte: nn.Embedding
    wpe: nn.Embedding
    ln_f: nn.LayerNorm

    @classmethod
    def refuse(cls, config: Any) -> None:
        for field in ("add_cross_attention", "reorder_and_upcast_attn"):
            if getattr(config, field, False):
                raise InputError(f"config.json: {field}", True, "must be false")

    def embed(self, inputs: Tensor) -> Tensor:
        self.check_length(inputs)
        positions = torch.arange(inputs.shape[1], device=inputs.device)[None]
        return cast(Tensor, self.wte(inputs) + self.wpe(positions))

    def run(
        self,
        layers: Iterable[nn.Module],
        x: Tensor,
        allowed: Tensor | None,
        positions: Tensor,
        first: int,
        cache: Any = None,
    ) -> Tensor:
        mask = everywhere(x) if allowed is None else allowed
        for layer in layers:
            x = layer(x, attention_mask=mask, cache=cache)
        return x

    def finish(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.ln_f(x))

    def token_table(self) -> Tensor:
        return self.wte.weight
