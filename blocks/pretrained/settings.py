"""What is set of a pretrained model; no torch and no transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ...errors import InputError
from ..settings import TransformerSettings, require
from . import places
from .card import ConvertedCard

_DIGEST = re.compile(r"[0-9a-f]{64}")
_Target = Annotated[str, Field(max_length=200)]


def by_digest(raw: Any) -> Any:
    """A model's settings as they came from somebody else, if they name no folder: what lies at a path of a stranger's
    choice is never looked at."""
    if isinstance(raw, Mapping) and "pretrained" in raw:
        given = raw["pretrained"]
        named = isinstance(given, str) and _DIGEST.fullmatch(given) is not None
        require(named, "pretrained", given, "expected the digest of a converted model, 64 hexadecimal digits")
    return raw


class PretrainedSettings(TransformerSettings):
    """A converted model, and what of it trains.

    `pretrained`: the folder that `fedblocks convert` wrote; kept, and sent in a plan, as the digest of its card.
    Sizes follow from the card.

    `trains`: "block", all weights of a block; "lora", low-rank additions to the linear maps whose names end in one of
    `lora_targets` (Hu et al. 2022; none: those of attention's queries and values); "bias", biases and norms. A
    block's noise embedding and head train with `training.interface`.

    `objective`: "task", the ordinary loss at the block's own head; "denoise", DiffusionBlocks' loss there; "mixed",
    both, and the ordinary loss at the end of the whole model, of which the block's own parameters alone get a
    gradient (so that the activations of the blocks after it are kept as well).

    `personal`: what each company has for itself in the last block, beside the common model and never in it, and
    trains on its own examples once the run is over: "head", a copy of the block's readout, or "adapter", low-rank
    additions of rank `personal_rank`. `personal_pull` is the weight of half the squared distance from the common
    model (Li et al. 2021), in `personal_steps` steps of AdamW at `personal_learning_rate`.
    """

    kind_of_model: ClassVar[Literal["encoder", "vision", "decoder"]]
    blocks_alike: ClassVar[bool] = False

    features: Literal["raw", "prefix"] = "prefix"
    pretrained: str
    trains: Literal["block", "lora", "bias"] = "lora"
    lora_rank: int = Field(8, ge=1, le=256)
    lora_alpha: float = Field(16.0, gt=0, le=1e4)
    lora_targets: tuple[_Target, ...] = Field((), max_length=64)
    objective: Literal["task", "denoise", "mixed"] = "task"
    personal: Literal["nothing", "head", "adapter"] = "nothing"
    personal_rank: int = Field(4, ge=1, le=256)
    personal_pull: float = Field(0.1, ge=0, le=1e6)
    personal_steps: int = Field(100, ge=1, le=100_000)
    personal_learning_rate: float = Field(1e-3, gt=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _from_its_folder(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not isinstance(raw.get("pretrained"), str):
            return raw
        given, found = raw["pretrained"], dict(raw)
        if _DIGEST.fullmatch(given):
            if all(name in raw for name in cls.sizes()):
                return raw
            _, card = places.converted(given)
        else:
            found["pretrained"] = places.register(Path(given))
            _, card = places.converted(found["pretrained"])
        cls._check(card, raw)
        return found | {name: getattr(card, name) for name in cls.sizes()}

    @classmethod
    def _check(cls, card: ConvertedCard, given: Mapping[str, Any]) -> None:
        require(card.kind == cls.kind_of_model, "pretrained", card.name, cls._other_kind(card))
        for name in cls.sizes():
            value = getattr(card, name)
            require(
                given.get(name, value) == value, name, given.get(name), f"the converted model has {value}"
            )

    @classmethod
    def _other_kind(cls, card: ConvertedCard) -> str:
        return f"is of kind {card.kind}, this family takes {cls.kind_of_model}"

    def check_sizes(self) -> None:
        """Raises: InputError unless these settings are of the kind and sizes of the card that they name, or it is not
        known."""
        _, card = places.converted(self.pretrained)
        if card.kind != self.kind_of_model:
            raise InputError("model.pretrained", self.pretrained, self._other_kind(card))
        for name in self.sizes():
            if getattr(self, name) != getattr(card, name):
                rule = f"the converted model has {getattr(card, name)}"
                raise InputError(f"model.{name}", getattr(self, name), rule)

    @classmethod
    def sizes(cls) -> tuple[str, ...]:
        """Fields that follow from a converted model; its card has them by the same names."""
        return ("hidden_size", "layers", "heads", "blocks")

    @model_validator(mode="after")
    def _of_the_whole_prefix(self) -> Self:
        rule = "a pretrained model's layers read those before them; expected prefix"
        require(self.features == "prefix", "features", self.features, rule)
        return self

    @property
    def denoises(self) -> bool:
        """Whether noisy targets are part of the loss."""
        return self.objective != "task"

    @property
    def reads_to_the_end(self) -> bool:
        return self.objective == "mixed"

    def network_options(self) -> dict[str, Any]:
        return {"settings": self}


class PretrainedClassifierSettings(PretrainedSettings):
    """`pooling`: what a prediction is read from, the mean of all tokens or the first one.

    `readout`: how the linear head reads it: "norm", after a layer norm that trains with it (the last block of a
    vision transformer whose first token is read has the original's own norm instead); "whitened", after a fixed
    linear map by which public data vary alike in all directions. Noise costs a whitened head less.
    """

    pooling: Literal["mean", "first"] = "mean"
    readout: Literal["norm", "whitened"] = "norm"
