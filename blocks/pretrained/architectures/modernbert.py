"""ModernBERT (Warner et al. 2024): an encoder with rotary positions, most of whose layers see a window."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn

from .common import Trunk
from .positions import FULL, SLIDING, refuse_rope, refuse_windows, within


class ModernBertTrunk(Trunk):
    package = "modernbert"
    config_class = "ModernBertConfig"
    classes = (
        "ModernBertModel",
        "ModernBertForMaskedLM",
        "ModernBertForSequenceClassification",
        "ModernBertForTokenClassification",
        "ModernBertForQuestionAnswering",
        "ModernBertForMultipleChoice",
    )
    layers_at = "layers"
    parts = ("embeddings", "final_norm", "rotary_emb")
    kind = "encoder"

    embeddings: Any
    final_norm: nn.Module
    rotary_emb: nn.Module

    @classmethod
    def refuse(cls, config: Any) -> None:
        refuse_rope(config)
        refuse_windows(config.layer_types, config.sliding_window)

    def embed(self, inputs: Tensor) -> Tensor:
        self.check_length(inputs)
        return cast(Tensor, self.embeddings(input_ids=inputs))

    def run(
        self, layers: Iterable[nn.Module], x: Tensor, allowed: Tensor | None, positions: Tensor, first: int
    ) -> Tensor:
        layers = list(layers)
        kinds = self.config.layer_types[first : first + len(layers)]
        rotations = {kind: self.rotary_emb(x, positions[None], kind) for kind in set(kinds)}
        # Half the window to either side.
        masks = {
            FULL: allowed,
            SLIDING: within(allowed, positions, self.config.sliding_window + 1, x.device),
        }
        for kind, layer in zip(kinds, layers, strict=True):
            x = layer(x, attention_mask=masks[kind], position_embeddings=rotations[kind])
        return x

    def finish(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.final_norm(x))

    def token_table(self) -> Tensor:
        return cast(Tensor, self.embeddings.tok_embeddings.weight)
