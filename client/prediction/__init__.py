"""Predictions of a model of any family, from inputs that the company's own loaders read.

    wanted = Wanted(source="new.csv")
    found = predict(model, card, wanted, Findings("new.csv"))
    found.columns["label"]

`request` says what may be asked of which kind of model, a file each makes the predictions, `columns` holds them.
"""

from __future__ import annotations

from collections.abc import Callable

from ...blocks.denoiser import Denoiser
from ...blocks.model_file import ModelCard
from ...blocks.settings import ImageSettings, SeriesSettings
from ...errors import InputError
from ..data.findings import Findings
from .columns import Predictions
from .generation import generated
from .request import Wanted, checked
from .rows import classified_images, classified_texts, predicted_rows
from .series import forecasts
from .text import continued, scored

__all__ = ["Predictions", "Wanted", "predict"]

OnDone = Callable[[int, int], None]


def predict(
    model: Denoiser,
    card: ModelCard,
    wanted: Wanted,
    findings: Findings,
    on_done: OnDone = lambda done, of: None,
) -> Predictions:
    """What the model makes of the inputs; the same request gives the same answer. `on_done`: (done, of how many).

    Raises: InputError for inputs that do not fit the model, and for what a model of its kind cannot be asked.
    """
    checked(card, wanted)
    settings = card.model
    if isinstance(settings, SeriesSettings):
        return forecasts(model, card, wanted, findings, on_done)
    if settings.connector == "text":
        return (scored if wanted.score else continued)(model, card, wanted, findings, on_done)
    if isinstance(settings, ImageSettings):
        how = generated if settings.label_side == "inputs" else classified_images
        return how(model, card, wanted, findings, on_done)
    if settings.connector == "labelled-text":
        return classified_texts(model, card, wanted, findings, on_done)
    if settings.connector == "tables":
        return predicted_rows(model, card, wanted, findings, on_done)
    raise InputError("model", settings.family, "no prediction is known for models of this family")
