"""Decoders with rotary positions and RMSNorm: Llama (Touvron et al. 2023), Qwen2 and 3, Mistral, Gemma 1 and 3."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ....errors import InputError
from .common import DecoderTrunk
from .positions import FULL, SLIDING, refuse_rope, refuse_windows, within


def everywhere(x: Tensor) -> Tensor:
    """The mask by which every token attends to all; without one, a decoder's attention is causal."""
    return torch.ones(1, 1, x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)


class LlamaTrunk(DecoderTrunk):
    package = "llama"
    config_class = "LlamaConfig"
    classes = ("LlamaModel", "LlamaForCausalLM")
    layers_at = "layers"
    parts = ("embed_tokens", "norm", "rotary_emb")

    embed_tokens: nn.Embedding
    norm: nn.Module
    rotary_emb: nn.Module

    @classmethod
    def refuse(cls, config: Any) -> None:
        refuse_rope(config)
        kinds = cls.layer_kinds(config)
        refuse_windows(kinds, config.sliding_window if SLIDING in kinds else None)

    @classmethod
    def layer_kinds(cls, config: Any) -> list[str]:
        """Of each layer of the model, whether it sees a window."""
        return [FULL] * config.num_hidden_layers

    def rotations(self, x: Tensor, positions: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """Cosines and sines of a kind of layer, (1, T, d_head)."""
        return cast(tuple[Tensor, Tensor], self.rotary_emb(x, positions[None]))

    def embed(self, inputs: Tensor) -> Tensor:
        self.check_length(inputs)
        return cast(Tensor, self.embed_tokens(inputs))

    def run(
        self,
        layers: Iterable[nn.Module],
        x: Tensor,
        allowed: Tensor | None,
        positions: Tensor,
        first: int,
        cache: Any = None,
    ) -> Tensor:
        layers = list(layers)
        kinds = self.layer_kinds(self.config)[first : first + len(layers)]
        rotations = {kind: self.rotations(x, positions, kind) for kind in set(kinds)}
        masks = {FULL: everywhere(x) if allowed is None else allowed}
        if SLIDING in kinds:
            seen = positions if cache is None else torch.arange(masks[FULL].shape[3])
            window = self.config.sliding_window
            masks[SLIDING] = cast(Tensor, within(masks[FULL], positions, window, x.device, seen))
        for kind, layer in zip(kinds, layers, strict=True):
            x = layer(x, attention_mask=masks[kind], position_embeddings=rotations[kind], cache=cache)
        return x

    def finish(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(x))

    def token_table(self) -> Tensor:
        return self.embed_tokens.weight


class Qwen2Trunk(LlamaTrunk):
    package = "qwen2"
    config_class = "Qwen2Config"
    classes = ("Qwen2Model", "Qwen2ForCausalLM")

    @classmethod
    def layer_kinds(cls, config: Any) -> list[str]:
        return list(config.layer_types)


class Qwen3Trunk(Qwen2Trunk):
    package = "qwen3"
    config_class = "Qwen3Config"
    classes = ("Qwen3Model", "Qwen3ForCausalLM")


class MistralTrunk(LlamaTrunk):
    package = "mistral"
    config_class = "MistralConfig"
    classes = ("MistralModel", "MistralForCausalLM")

    @classmethod
    def layer_kinds(cls, config: Any) -> list[str]:
        return [FULL if config.sliding_window is None else SLIDING] * config.num_hidden_layers


class GemmaTrunk(LlamaTrunk):
    package = "gemma"
    config_class = "GemmaConfig"
    classes = ("GemmaModel", "GemmaForCausalLM")
    norm_offset = True

    @classmethod
    def refuse(cls, config: Any) -> None:
        super().refuse(config)
        if getattr(config, "use_bidirectional_attention", False):
            raise InputError(
                "config.json: use_bidirectional_attention", True, "must be false: a decoder is causal"
            )


class Gemma3Trunk(GemmaTrunk):
    package = "gemma3"
    config_class = "Gemma3TextConfig"
    classes = ("Gemma3TextModel", "Gemma3ForCausalLM")

    @classmethod
    def refuse(cls, config: Any) -> None:
        super().refuse(config)
        if config.attn_logit_softcapping is not None:
            raise InputError(
                "config.json: attn_logit_softcapping",
                config.attn_logit_softcapping,
                "must be null: see Gemma 3",
            )

    @classmethod
    def layer_kinds(cls, config: Any) -> list[str]:
        return list(config.layer_types)

    def rotations(self, x: Tensor, positions: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], self.rotary_emb(x, positions[None], kind))

    def logits(self, x: Tensor) -> Tensor:
        logits, cap = super().logits(x), self.config.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap
