"""Small images as they are, pixel by pixel, inside the page."""

from __future__ import annotations

import base64
import io
from itertools import groupby

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

# Beyond this many pixels a compressed bitmap is far smaller than one path per colour.
_MOST_VECTOR_PIXELS = 32 * 32


def picture(pixels: npt.NDArray[np.generic], label: str) -> Markup:
    """An image (C, S, S) or (S, S) with values in [0, 1], as a crisp element that reads out `label`."""
    levels = _levels(pixels)
    height, width = levels.shape[:2]
    if height * width <= _MOST_VECTOR_PIXELS:
        return Markup(
            '<svg class="pixels" viewBox="0 0 {} {}" role="img" aria-label="{}" '
            'shape-rendering="crispEdges">{}</svg>'
        ).format(width, height, label, _paths(levels))
    out = io.BytesIO()
    Image.fromarray(levels).save(out, format="PNG", optimize=True)
    return Markup('<img class="pixels" alt="{}" src="data:image/png;base64,{}">').format(
        label, base64.b64encode(out.getvalue()).decode()
    )


def _levels(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """(S, S, 3) of bytes; anything but three channels is shown as grey."""
    values = np.asarray(pixels, dtype=np.float64)
    if values.ndim == 2:
        values = values[None]
    if len(values) != 3:
        values = np.repeat(values.mean(axis=0, keepdims=True), 3, axis=0)
    values = np.nan_to_num(np.clip(values, 0, 1))
    return np.ascontiguousarray(np.rint(255 * values).astype(np.uint8).transpose(1, 2, 0))  # (S, S, 3)


def _paths(levels: npt.NDArray[np.uint8]) -> Markup:
    """One path per colour, made of runs of equal pixels."""
    runs: dict[str, list[str]] = {}
    for y, row in enumerate(levels):
        x = 0
        for colour, same in groupby("#{:02x}{:02x}{:02x}".format(*pixel) for pixel in row):
            length = len(list(same))
            runs.setdefault(colour, []).append(f"M{x} {y}h{length}v1h-{length}z")
            x += length
    return Markup("").join(
        Markup('<path fill="{}" d="{}"/>').format(colour, "".join(parts)) for colour, parts in runs.items()
    )
