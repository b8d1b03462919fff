"""What the settings of every model family share, and those of the noise that blocks denoise; pydantic alone."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MOST_BLOCKS = 64  # of a model, and so of the states that a message may carry


def require(holds: bool, field: str, value: object, rule: str) -> None:
    """Refuse the settings unless the rule holds; the complaint keeps field, value and rule apart (see `load`)."""
    if not holds:
        raise PydanticCustomError("rule", "{field}: {rule}", {"field": field, "value": value, "rule": rule})


def chosen_of(chosen: tuple[int, ...] | None, blocks: int) -> tuple[int, ...]:
    """The blocks that are chosen, of a model of so many; none: all."""
    return tuple(range(blocks)) if chosen is None else chosen


class Part(BaseModel):
    # Built at first use: the model families are looked up then, not when settings are imported.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _none(cls, raw: Any) -> Any:
        """TOML has no null: "none" stands for it."""
        if not isinstance(raw, dict):
            return raw
        return {key: None if value == "none" else value for key, value in raw.items()}


class DataKind(Part):
    """Shapes of one example; `classes` is the number of values a whole-number field may take, none: real.

    `categories`: the last columns of a row of real inputs are codes, each of so many values.
    """

    inputs: tuple[int, ...]
    input_classes: int | None = None
    categories: tuple[int, ...] = ()
    targets: tuple[int, ...]
    target_classes: int | None = None

    @property
    def labels(self) -> int | None:
        """How many classes an example's one label has; none where its target is something else."""
        return self.target_classes if self.targets == () else None


class TransformerSettings(Part):
    """What all families share: `layers` layers cut into `blocks` blocks of `layers / blocks`.

    `features`: "raw", every block reads the clean input through its own embedding alone; "prefix", it also
    reads what the blocks before it, frozen, have made of that input.

    A family derives from one of the classes below, which say what data it reads, and narrows `family` to its name.
    """

    # What reads the data (see `client/data`).
    connector: ClassVar[str]
    # Where examples have a class, by which they can be dealt to companies; none: their order is that of time or text.
    label_side: ClassVar[Literal["inputs", "targets"] | None] = None
    # Whether a block can start from the weights of another.
    blocks_alike: ClassVar[bool] = True

    if TYPE_CHECKING:
        family: (
            str  # each family's own field, a literal; its place among the others is that in a plan's digest
        )

    hidden_size: int = Field(32, ge=4, le=8192)
    layers: int = Field(6, ge=1, le=256)
    blocks: int = Field(3, ge=1, le=MOST_BLOCKS)
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

    @property
    def data_words(self) -> str:
        """These examples in the words of a report."""
        raise NotImplementedError

    @property
    def unit_words(self) -> str:
        """One example, the unit that differential privacy protects, in the words of a report."""
        return "one example"

    @property
    def reads_to_the_end(self) -> bool:
        """Whether a block's loss is also one of the whole model, through the blocks after it."""
        return False

    def check_draws(self, field: str, draws: int) -> None:
        """Refuse so many noise draws of an example, in this field, where it would be too large for a pass."""

    def network_options(self) -> dict[str, Any]:
        """What the family's network is built with, besides its noise."""
        return self.model_dump(exclude={"family", "blocks"})


class ImageSettings(TransformerSettings):
    """Images (channels, image_size, image_size) in [0, 1] and their classes; `label_side` says which is the input."""

    connector: ClassVar[str] = "images"

    image_size: int = Field(8, ge=2, le=512)
    channels: int = Field(1, ge=1, le=16)
    patch_size: int = Field(2, ge=1)
    classes: int = Field(10, ge=2)

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        require(
            self.image_size % self.patch_size == 0, "patch_size", self.patch_size, "must divide image_size"
        )
        return self

    @property
    def kind(self) -> DataKind:
        image = (self.channels, self.image_size, self.image_size)
        if self.label_side == "targets":
            return DataKind(inputs=image, input_classes=None, targets=(), target_classes=self.classes)
        return DataKind(inputs=(), input_classes=self.classes, targets=image, target_classes=None)

    @property
    def data_words(self) -> str:
        return f"{self.image_size} × {self.image_size} images in {self.classes} classes"

    @property
    def unit_words(self) -> str:
        return "one image with its class"


class TokenWindows:
    """What all models say of their examples that are windows of tokens."""

    if TYPE_CHECKING:
        sequence_length: int
        vocabulary: int

    @property
    def kind(self) -> DataKind:
        tokens = (self.sequence_length,)
        return DataKind(
            inputs=tokens, input_classes=self.vocabulary, targets=tokens, target_classes=self.vocabulary
        )

    @property
    def data_words(self) -> str:
        return f"sequences of {self.sequence_length} tokens out of {self.vocabulary}"

    @property
    def unit_words(self) -> str:
        return f"one window of {self.sequence_length} tokens, of which a document may have many"


class TextSettings(TokenWindows, TransformerSettings):
    """`tokenizer`: ascii (97 characters), text8 (27), bytes (256), or a tokenizer.json on disk."""

    connector: ClassVar[str] = "text"

    sequence_length: int = Field(64, ge=2, le=65536)
    tokenizer: str = "ascii"
    vocabulary: int = Field(97, ge=2, le=1_000_000)

    @model_validator(mode="after")
    def _known_vocabulary(self) -> Self:
        size = {"ascii": 97, "text8": 27, "bytes": 256}.get(self.tokenizer, self.vocabulary)
        rule = f"the {self.tokenizer} tokenizer has {size} tokens"
        require(self.vocabulary == size, "vocabulary", self.vocabulary, rule)
        width = self.hidden_size // self.heads
        require(width % 2 == 0, "heads", self.heads, "rotary positions need an even hidden_size / heads")
        return self

    def network_options(self) -> dict[str, Any]:
        return self.model_dump(exclude={"family", "blocks", "tokenizer", "sequence_length"})


class SeriesSettings(TransformerSettings):
    """Time series: the last `context_length` values of each channel, and the `horizon` values after them."""

    connector: ClassVar[str] = "series"

    family: str
    context_length: int = Field(96, ge=2, le=65536)
    horizon: int = Field(24, ge=1, le=8192)
    channels: int = Field(1, ge=1, le=4096)

    @property
    def kind(self) -> DataKind:
        return DataKind(
            inputs=(self.channels, self.context_length), input_classes=None,
            targets=(self.channels, self.horizon), target_classes=None,
        )  # fmt: skip

    @property
    def data_words(self) -> str:
        return f"{self.horizon} values ahead from the last {self.context_length}"

    @property
    def unit_words(self) -> str:
        steps = self.context_length + self.horizon
        return f"one window of {steps} time steps, of which a series has many, and they overlap"


class NoiseSettings(Part):
    """Denoising noise of the blocks (not the privacy noise); names as in EDM.

    `partition`: "equi-probability" (the paper's), "uniform" (equal steps of log sigma), "uniform-linear", or
    "equi-information" (equal shares of what is to be learnt; refitted to the measured loss curve every
    `refit_every` steps of pretraining where no closed form exists). `edges`, if given, are used as they are.
    """

    P_mean: float = Field(1.0, ge=-6, le=6)
    P_std: float = Field(1.2, ge=0.1, le=5)
    sigma_min: float = Field(0.002, ge=1e-6, le=1e6)
    sigma_max: float = Field(80.0, ge=1e-6, le=1e6)
    sigma_data: float = Field(0.5, ge=1e-3, le=1e3)
    rate_min: float = Field(1e-3, ge=1e-6, lt=1, description="lowest masking rate of a masked language model")
    partition: Literal["equi-probability", "uniform", "uniform-linear", "equi-information"] = (
        "equi-probability"
    )
    edges: tuple[float, ...] | None = None
    refit_every: int = Field(100, ge=1)
    overlap: float = Field(0.05, ge=0, lt=1)
    weight: Literal["unit", "edm"] = "unit"

    @model_validator(mode="after")
    def _ordered(self) -> NoiseSettings:
        require(self.sigma_min < self.sigma_max, "sigma_min", self.sigma_min, "must be below sigma_max")
        law = NormalDist(self.P_mean, self.P_std)
        inside = law.cdf(math.log(self.sigma_max)) - law.cdf(math.log(self.sigma_min))
        require(inside > 0.5, "P_mean", self.P_mean, "sigma_min to sigma_max must hold most of the law")
        return self
