"""The model of a run, by family: its network and the examples that it reads."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .part import Part, require


class TransformerSettings(Part):
    """What all families share: `layers` layers cut into `blocks` blocks of `layers / blocks`.

    `features`: "raw", every block reads the clean input through its own embedding alone; "prefix", it also
    reads what the blocks before it, frozen, have made of that input.
    """

    hidden_size: int = Field(32, ge=4, le=8192)
    layers: int = Field(6, ge=1, le=256)
    blocks: int = Field(3, ge=1, le=64)
    heads: int = Field(4, ge=1)
    mlp_ratio: float = Field(4.0, ge=0.25, le=16)
    features: Literal["raw", "prefix"] = "raw"

    @model_validator(mode="after")
    def _cuts(self) -> Self:
        require(self.hidden_size % self.heads == 0, "heads", self.heads, "must divide hidden_size")
        require(self.layers % self.blocks == 0, "layers", self.layers, "must be a multiple of blocks")
        return self

    @property
    def kind(self) -> DataKind:
        """The examples that this model reads."""
        raise NotImplementedError


class DataKind(Part):
    """Shapes of one example; `classes` is the number of values a whole-number field may take, none: real."""

    inputs: tuple[int, ...]
    input_classes: int | None = None
    targets: tuple[int, ...]
    target_classes: int | None = None


class _ImageSettings(TransformerSettings):
    image_size: int = Field(8, ge=2, le=512)
    channels: int = Field(1, ge=1, le=16)
    patch_size: int = Field(2, ge=1)
    classes: int = Field(10, ge=2)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        require(
            self.image_size % self.patch_size == 0, "patch_size", self.patch_size, "must divide image_size"
        )
        return self

    @property
    def image_shape(self) -> tuple[int, ...]:
        return (self.channels, self.image_size, self.image_size)


class ViTSettings(_ImageSettings):
    """Image classifier: images in, label out."""

    family: Literal["vit"] = "vit"
    initializer_range: float = Field(0.02, gt=0, le=1, description="deviation of the weights at first")

    @model_validator(mode="after")
    def _table(self) -> Self:
        require(self.classes <= self.hidden_size, "classes", self.classes, "must not exceed hidden_size")
        return self

    @property
    def kind(self) -> DataKind:
        return DataKind(inputs=self.image_shape, input_classes=None, targets=(), target_classes=self.classes)


class DiTSettings(_ImageSettings):
    """Class-conditional image generator: class in, image out."""

    family: Literal["dit"] = "dit"

    @property
    def kind(self) -> DataKind:
        return DataKind(inputs=(), input_classes=self.classes, targets=self.image_shape, target_classes=None)


class _TextSettings(TransformerSettings):
    """`tokenizer`: ascii (97 characters), text8 (27), bytes (256), or a tokenizer.json on disk."""

    sequence_length: int = Field(64, ge=2, le=65536)
    tokenizer: str = "ascii"
    vocabulary: int = Field(97, ge=2, le=1_000_000)

    @model_validator(mode="after")
    def _known(self) -> Self:
        size = {"ascii": 97, "text8": 27, "bytes": 256}.get(self.tokenizer, self.vocabulary)
        rule = f"the {self.tokenizer} tokenizer has {size} tokens"
        require(self.vocabulary == size, "vocabulary", self.vocabulary, rule)
        width = self.hidden_size // self.heads
        require(width % 2 == 0, "heads", self.heads, "rotary positions need an even hidden_size / heads")
        return self

    @property
    def kind(self) -> DataKind:
        tokens = (self.sequence_length,)
        return DataKind(
            inputs=tokens, input_classes=self.vocabulary, targets=tokens, target_classes=self.vocabulary
        )


class ARLanguageModelSettings(_TextSettings):
    """Autoregressive language model in the style of Llama."""

    family: Literal["ar-lm"] = "ar-lm"


class MaskedLanguageModelSettings(_TextSettings):
    """Masked-diffusion language model."""

    family: Literal["masked-lm"] = "masked-lm"


class RecurrentLanguageModelSettings(_TextSettings):
    """Looped language model: one block of prelude, core and coda, whose core stands for many layers."""

    family: Literal["recurrent-lm"] = "recurrent-lm"
    blocks: int = Field(1, ge=1, le=1)
    recurrences: int = Field(4, ge=1, le=128)


class ForecasterSettings(TransformerSettings):
    """Probabilistic forecaster: the last `context_length` values in, `horizon` values out, per channel."""

    family: Literal["forecaster"] = "forecaster"
    context_length: int = Field(96, ge=2, le=65536)
    horizon: int = Field(24, ge=1, le=8192)
    channels: int = Field(1, ge=1, le=4096)
    patch_size: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, length in (("context_length", self.context_length), ("horizon", self.horizon)):
            require(
                length % self.patch_size == 0, "patch_size", self.patch_size, f"must divide {name}={length}"
            )
        return self

    @property
    def kind(self) -> DataKind:
        return DataKind(
            inputs=(self.channels, self.context_length), input_classes=None,
            targets=(self.channels, self.horizon), target_classes=None,
        )  # fmt: skip


ModelSettings = Annotated[
    ViTSettings
    | DiTSettings
    | ARLanguageModelSettings
    | MaskedLanguageModelSettings
    | RecurrentLanguageModelSettings
    | ForecasterSettings,
    Field(discriminator="family"),
]


FAMILY_NAMES = ("vit", "dit", "ar-lm", "masked-lm", "recurrent-lm", "forecaster")
