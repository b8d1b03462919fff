"""A pretrained text encoder (BERT, MiniLM, ModernBERT) that learns to tell texts of several classes apart."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..pretrained.classifier import PretrainedClassifier
from ..pretrained.settings import PretrainedClassifierSettings
from ..pretrained.small import small_model
from ..settings import DataKind, require
from . import Family


class PretrainedTextClassifierSettings(PretrainedClassifierSettings):
    """`sequence_length`: tokens of a text, longer ones are cut. `pad`: the token that fills short ones up."""

    connector: ClassVar[str] = "labelled-text"
    label_side = "targets"
    kind_of_model = "encoder"

    family: Literal["pretrained-text-classifier"] = "pretrained-text-classifier"
    vocabulary: int = Field(ge=2, le=1_000_000)
    longest: int = Field(ge=2)
    pad: int = Field(ge=0)
    sequence_length: int = Field(64, ge=2, le=65536)
    classes: int = Field(2, ge=2, le=100_000)

    @classmethod
    def sizes(cls) -> tuple[str, ...]:
        return (*super().sizes(), "vocabulary", "longest", "pad")

    @model_validator(mode="after")
    def _short_enough(self) -> Self:
        rule = f"the model takes at most {self.longest} tokens"
        require(self.sequence_length <= self.longest, "sequence_length", self.sequence_length, rule)
        require(self.pad < self.vocabulary, "pad", self.pad, f"the model has {self.vocabulary} tokens")
        return self

    @property
    def kind(self) -> DataKind:
        return DataKind(
            inputs=(self.sequence_length,),
            input_classes=self.vocabulary,
            targets=(),
            target_classes=self.classes,
        )

    @property
    def data_words(self) -> str:
        return f"texts of at most {self.sequence_length} tokens in {self.classes} classes"

    @property
    def unit_words(self) -> str:
        return "one text with its class"


class PretrainedTextClassifier(PretrainedClassifier):
    """Tokens (N, T), filled up at their end with the padding token; labels (N,)."""

    def present(self, inputs: Tensor, tokens: int) -> Tensor:
        settings = self.settings
        assert isinstance(settings, PretrainedTextClassifierSettings)
        found = inputs != settings.pad
        # A text of nothing else has its first token all the same: attention needs something to attend to.
        first = torch.arange(tokens, device=inputs.device) == 0
        return found | first


def _small(layers: int, blocks: int) -> dict[str, object]:
    return {"pretrained": str(small_model("encoder", layers, blocks)), "sequence_length": 5, "classes": 3}


FAMILY = Family(
    title="pretrained text classifier",
    settings=PretrainedTextClassifierSettings,
    network=PretrainedTextClassifier,
    small=_small,
)
