"""BERT (Devlin et al. 2019), MiniLM too, and DistilBERT (Sanh et al. 2019): encoders with learned positions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from ....errors import InputError
from .common import Trunk


class BertTrunk(Trunk):
    """No norm behind the last layer: each layer ends in one."""

    package = "bert"
    config_class = "BertConfig"
    classes: ClassVar[tuple[str, ...]] = (
        "BertModel",
        "BertForMaskedLM",
        "BertForPreTraining",
        "BertForNextSentencePrediction",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
        "BertForMultipleChoice",
    )
    layers_at = "encoder.layer"
    parts = ("embeddings",)
    kind = "encoder"

    embeddings: Any

    @classmethod
    def refuse(cls, config: Any) -> None:
        for field in ("is_decoder", "add_cross_attention"):
            if getattr(config, field, False):
                raise InputError(
                    f"config.json: {field}", True, "only encoders of this architecture can be converted"
                )

    def embed(self, inputs: Tensor) -> Tensor:
        self.check_length(inputs)
        return cast(Tensor, self.embeddings(input_ids=inputs))

    def run(
        self, layers: Iterable[nn.Module], x: Tensor, allowed: Tensor | None, positions: Tensor, first: int
    ) -> Tensor:
        for layer in layers:
            x = layer(x, allowed)
        return x

    def finish(self, x: Tensor) -> Tensor:
        return x

    def token_table(self) -> Tensor:
        return cast(Tensor, self.embeddings.word_embeddings.weight)


class DistilBertTrunk(BertTrunk):
    package = "distilbert"
    config_class = "DistilBertConfig"
    classes = (
        "DistilBertModel",
        "DistilBertForMaskedLM",
        "DistilBertForSequenceClassification",
        "DistilBertForTokenClassification",
        "DistilBertForQuestionAnswering",
        "DistilBertForMultipleChoice",
    )
    layers_at = "transformer.layer"

    @classmethod
    def refuse(cls, config: Any) -> None:
        pass
