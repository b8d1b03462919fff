"""A converted model as it is, before any company has adapted it: a decoder continues and scores texts already."""

from __future__ import annotations

from pathlib import Path

from ... import __version__
from ...blocks.build import build_model, metric_of
from ...blocks.denoiser import Denoiser
from ...blocks.families.pretrained_decoder import PretrainedDecoderSettings
from ...blocks.model_file import ModelCard
from ...blocks.pretrained.card import read_card
from ...blocks.settings import NoiseSettings
from ...errors import InputError

# Tokens that it reads at once, unless it has fewer positions.
_WINDOW = 1024


def converted_model(folder: Path) -> tuple[Denoiser, ModelCard]:
    """The model in a folder that `fedblocks convert` wrote, and what is to be said of it.

    Raises: InputError where the folder is none, or its model has nothing to answer with.
    """
    card = read_card(folder)
    if card.kind != "decoder":
        rule = f"a {card.kind} model knows no classes before it is adapted: name a run folder or an exported model"
        raise InputError("RUN_OR_MODEL", str(folder), rule)
    window = min(card.longest or _WINDOW, _WINDOW)
    told = {"pretrained": str(folder), "sequence_length": window}
    settings, noise = PretrainedDecoderSettings.model_validate(told), NoiseSettings()
    about = ModelCard(
        version=__version__,
        run=card.name,
        round=0,
        rounds=0,
        plan="",
        digest=card.digest,
        guarantee="No company's data entered.",
        model=settings,
        noise=noise,
        metric=metric_of(settings).name,
    )
    return build_model(settings, noise).eval(), about
