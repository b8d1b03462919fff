"""What is set of a pretrained model; no torch and no transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ...errors import InputError
from ..settings import TransformerSettings, require
from . import places
from .card import ConvertedCard

_DIGEST = re.compile(r"[0-9a-f]{64}")


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

    features: Literal["raw", "prefix"] = "prefix"
    pretrained: str
    trains: Literal["block", "lora", "bias"] = "lora"
    lora_rank: int = Field(8, ge=1, le=256)
    lora_alpha: float = Field(16.0, gt=0, le=1e4)
    lora_targets: tuple[str, ...] = ()
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
        kind = cls.kind_of_model
        require(
            card.kind == kind, "pretrained", card.name, f"is of kind {card.kind}, this family takes {kind}"
        )
        for name in cls.sizes():
            value = getattr(card, name)
            require(
                given.get(name, value) == value, name, given.get(name), f"the converted model has {value}"
            )

    def check_sizes(self) -> None:
        """Raises: InputError unless these settings have the sizes of the card that they name, or it is not known."""
        _, card = places.converted(self.pretrained)
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

    def network_options(self) -> dict[str, Any]:
        return {"settings": self}
