"""Data connectors: from a built-in set, or the company's own disk, to examples of a model family.

Everything is checked here, before a run spends anything: shapes, finite values, classes in range.
`images` serves the classifier and the image generator, `text` the language models, `series` the forecaster.
"""

from __future__ import annotations

from ...blocks.examples import Examples
from ...errors import InputError
from ...settings import DataSource, DiTSettings, ForecasterSettings, ModelSettings, ViTSettings
from .images import load_images
from .series import load_series
from .text import TextSettings, load_text

__all__ = ["Examples", "load_examples"]


def load_examples(field: str, source: DataSource, model: ModelSettings, match_contrast: bool) -> Examples:
    """Read, check and bring to the model's size; `field` names the setting in errors."""
    if isinstance(model, ViTSettings | DiTSettings):
        images, labels = load_images(field, source, model, match_contrast)
        found = Examples(images, labels) if isinstance(model, ViTSettings) else Examples(labels, images)
    elif isinstance(model, TextSettings):
        tokens = load_text(field, source, model)
        found = Examples(tokens, tokens)
    elif isinstance(model, ForecasterSettings):
        found = Examples(*load_series(field, source, model))
    else:
        raise InputError("model.family", model.family, "no data connector yet")
    return found.check(field, model.kind)
