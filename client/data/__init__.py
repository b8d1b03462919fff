"""Data connectors: from a built-in set, or the company's own disk, to examples of a model family.

Everything is checked here, before a run spends anything: shapes, finite values, classes in range.
A family's settings name their connector (see `blocks/settings.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...blocks.examples import Examples
from ...blocks.families import ModelSettings
from ...blocks.settings import ImageSettings, SeriesSettings, TextSettings
from ...settings import DataSource
from .images import load_images
from .series import load_series
from .text import load_text

__all__ = ["CONNECTORS", "Examples", "load_examples"]


def load_examples(field: str, source: DataSource, model: ModelSettings, match_contrast: bool) -> Examples:
    """Read, check and bring to the model's size; `field` names the setting in errors."""
    return CONNECTORS[model.connector](field, source, model, match_contrast).check(field, model.kind)


def _images(field: str, source: DataSource, model: ImageSettings, match_contrast: bool) -> Examples:
    images, labels = load_images(field, source, model, match_contrast)
    return Examples(images, labels) if model.label_side == "targets" else Examples(labels, images)


def _text(field: str, source: DataSource, model: TextSettings, match_contrast: bool) -> Examples:
    tokens = load_text(field, source, model)
    return Examples(tokens, tokens)


def _series(field: str, source: DataSource, model: SeriesSettings, match_contrast: bool) -> Examples:
    return Examples(*load_series(field, source, model))


# A connector takes the settings that name it.
CONNECTORS: dict[str, Callable[[str, DataSource, Any, bool], Examples]] = {
    "images": _images,
    "text": _text,
    "series": _series,
}
