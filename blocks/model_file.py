"""A model to take along: one safetensors file, and beside it a small JSON file, the card, that says what it is.

    model, card = load_model(Path("acme"))   # a folder, or acme.safetensors with acme.json beside it
    card.model.kind, card.guarantee

A folder holds model.safetensors and model.json. Reading needs torch, pydantic and safetensors, and nothing of Flower.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationError, field_validator, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from .. import atomic_file
from ..errors import InputError, RunError
from .build import build_model, network_of
from .denoiser import Denoiser
from .families import ModelSettings
from .pretrained.settings import by_digest
from .settings import NoiseSettings, Part, require
from .size import parameters_of
from .state import ModelState, State, check_part, digest, merge, split

SUFFIX = ".safetensors"
_TENSORS, _CARD = f"model{SUFFIX}", "model.json"


class ModelCard(Part):
    """What a model is and where it comes from.

    `plan`: digest of what the companies agreed to; `digest`: SHA-256 of the tensors (`blocks.state.digest`), both in
    hexadecimal digits. `guarantee`: in one sentence. `quality`: the family's metric on public data. `contract` and
    `match_contrast`: how examples are read; `labels`: the classes in order, where they have names.
    """

    format: Literal[1] = 1
    version: str
    run: str
    round: int = Field(ge=0)
    rounds: int = Field(ge=0)
    plan: str
    digest: str
    guarantee: str
    model: ModelSettings
    noise: NoiseSettings
    metric: str
    quality: float | None = None
    match_contrast: bool = False
    labels: tuple[str, ...] | None = None
    contract: dict[str, Any] | None = None

    @field_validator("model", mode="before")
    @classmethod
    def _without_a_folder(cls, raw: Any) -> Any:
        return by_digest(raw)

    @model_validator(mode="after")
    def _names(self) -> Self:
        classes = self.model.kind.target_classes or self.model.kind.input_classes
        if self.labels is not None and classes is not None:
            require(len(self.labels) == classes, "labels", len(self.labels), f"expected {classes} names")
        return self

    def name_of(self, label: int) -> str:
        """A class as its owner calls it."""
        return str(label) if self.labels is None else self.labels[label]


def save_model(state: ModelState, card: ModelCard, to: Path) -> tuple[Path, Path]:
    """Write tensors and card to a new folder, or to NAME.safetensors and NAME.json; returns both paths.

    Raises: InputError where something lies there already.
    """
    tensors: State = dict(state.shared)
    for block in state.blocks:
        tensors |= block
    text = card.model_dump_json(indent=2).encode()
    paths = places(to)
    for path in (paths[0], paths[1]) if to.suffix == SUFFIX else (to,):
        if os.path.lexists(path):
            raise InputError("--to", str(path), "exists already; name another, or remove it")
    if to.suffix != SUFFIX:
        with atomic_file.creating_folder(to) as draft:
            save_file(tensors, draft / _TENSORS)
            (draft / _CARD).write_bytes(text)
        return paths
    with atomic_file.creating(paths[0]) as draft:
        save_file(tensors, draft)
    with atomic_file.creating(paths[1]) as draft:
        draft.write_bytes(text)
    return paths


def places(path: Path) -> tuple[Path, Path]:
    """Tensors and card of a model at `path`: NAME.safetensors, or a folder."""
    if path.suffix == SUFFIX:
        return path, path.with_suffix(".json")
    return path / _TENSORS, path / _CARD


def load_model(path: str | Path) -> tuple[Denoiser, ModelCard]:
    """The model, on the CPU, and its card; every tensor is checked against the card's settings and digest.

    Raises: InputError naming the file that is missing, damaged or not of the other.
    """
    file, beside = places(Path(path))
    for each in (file, beside):
        if not each.is_file():
            rule = f"no model here: {each.name} is missing; fedblocks model export writes both files"
            raise InputError("model", str(path), rule)
    try:
        card = ModelCard.model_validate_json(beside.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "card"
        raise InputError("model", str(beside), f"not the card of a model ({field}: {first['msg']})") from None
    try:
        with safe_open(file, "pt") as opened:
            names = set(opened.keys())
        _check_size(card, file, beside)
        model = _blank(card)
        if not names <= {*model.state_dict()}:
            raise InputError("model", str(file), "holds tensors that the model of its card has not")
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError("model", str(file), f"cannot be read ({type(error).__name__})") from None
    return _filled(card, model, tensors, file), card


def _check_size(card: ModelCard, file: Path, beside: Path) -> None:
    """Refuse a card whose model is larger than its file, before memory is taken for it.

    A pretrained model lies elsewhere, and is as large as that.
    """
    if not network_of(card.model).blocks_alike:
        return
    try:
        values = parameters_of(card.model)
    except (TypeError, ValueError, RuntimeError):  # PyTorch counts up to 2^63
        values = sys.maxsize
    if values > file.stat().st_size:
        raise InputError("model", str(beside), f"tells of a larger model than {file.name} can hold")


def model_of(state: ModelState, card: ModelCard) -> Denoiser:
    """The model of a state that is known to be the card's, on the CPU."""
    model = _blank(card)
    merge(model, state.shared, *state.blocks)
    return model.eval()


def _blank(card: ModelCard) -> Denoiser:
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are all replaced
        return build_model(card.model, card.noise)


def _filled(card: ModelCard, model: Denoiser, tensors: State, file: Path) -> Denoiser:
    own = split(model)
    parts = [{name: tensors[name] for name in part if name in tensors} for part in (own.shared, *own.blocks)]
    try:
        for b, part in enumerate(parts):
            check_part(model, part, None if b == 0 else b - 1)
    except RunError as error:
        raise InputError("model", str(file), f"not the tensors that its card tells of ({error})") from None
    if digest(tensors).hex() != card.digest:
        raise InputError("model", str(file), "not the tensors that its card tells of (their digest differs)")
    merge(model, *parts)
    return model.eval()
