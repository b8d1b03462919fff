"""What is asked of a model, and which of it a model of a kind can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from ...blocks.families import family
from ...blocks.masked import MaskedDenoiser
from ...blocks.model_file import ModelCard
from ...blocks.settings import SeriesSettings
from ...errors import InputError
from ...settings import DataSource, validated
from ...settings.contract import (
    ImageContract,
    LabelledTextContract,
    SeriesContract,
    TableContract,
    TextContract,
)
from ..data import contract_of

C = TypeVar("C", TableContract, ImageContract, TextContract, LabelledTextContract, SeriesContract)
INPUT = "--input"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`source`: a file, folder or database that the loaders read; none for models that need no input.

    `contract`: how it is read; none: as the model's card says. `samples`: futures, texts or images to be drawn for
    each input. `interval`: the share of a forecast's samples between low and high. `length` (tokens) and
    `temperature` of a continuation, or `score` for the texts' own likelihood. `labels`: classes to be drawn.
    """

    source: str | None = None
    contract: dict[str, Any] | None = None
    seed: int = 0
    samples: int | None = None
    interval: float | None = None
    length: int | None = None
    temperature: float | None = None
    score: bool = False
    labels: tuple[str, ...] = ()


def checked(card: ModelCard, wanted: Wanted) -> None:
    """Raises: InputError naming the option that means nothing for this model, or the input that is missing."""
    model = card.model
    text, series = model.connector == "text", isinstance(model, SeriesSettings)
    draws_images = model.connector == "images" and model.label_side == "inputs"
    masked = text and issubclass(family(model.family).network_of(model), MaskedDenoiser)
    fits = {
        "samples": series or draws_images or (text and not wanted.score),
        "interval": series,
        "length": text and not wanted.score,
        "temperature": text and not wanted.score and not masked,
        "score": text,
        "labels": draws_images,
    }
    for name, fit in fits.items():
        if getattr(wanted, name) not in (None, False, ()) and not fit:
            option = "--label" if name == "labels" else f"--{name}"
            rule = f"means nothing for a model of family {model.family}" + (
                " with --score" if wanted.score else ""
            )
            raise InputError(option, getattr(wanted, name), rule)
    if wanted.source is None and not draws_images:
        raise InputError(INPUT, None, "name a file")
    if wanted.source is not None and draws_images:
        rule = f"a model of family {model.family} draws images of a class: name classes by --label instead"
        raise InputError(INPUT, wanted.source, rule)


def contract_for(card: ModelCard, wanted: Wanted, kind: type[C]) -> C | None:
    """The contract to read the inputs by. Raises: InputError where it is one for other data."""
    raw = {"source": wanted.source or "", "contract": wanted.contract or card.contract}
    return contract_of("data", validated(DataSource, raw), kind)
