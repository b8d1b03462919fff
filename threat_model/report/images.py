"""Small images embedded in the page, pixel by pixel."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image


def picture(pixels: npt.NDArray[np.generic], label: str, kind: str = "pixels") -> Markup:
    """An image (C, S, S) or (S, S) with values in [0, 1], as an embedded PNG with the alt text `label`.

    `kind`: its classes in the page's style.
    """
    out = io.BytesIO()
    Image.fromarray(_levels(pixels)).save(out, format="PNG", optimize=True)
    return Markup('<img class="{}" alt="{}" src="data:image/png;base64,{}">').format(
        kind, label, base64.b64encode(out.getvalue()).decode()
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


_PLOT = (48, 96)  # pixels, height and width


def plot(series: npt.NDArray[np.generic], limits: tuple[float, float], label: str) -> Markup:
    """A series (C, T) as dark dots on white, from the lowest to the highest of `limits`; what lies beyond is cut."""
    height, width = _PLOT
    low, high = limits
    pixels = np.ones(_PLOT)
    values = np.nan_to_num(np.asarray(series, dtype=np.float64))
    at = np.linspace(0, values.shape[1] - 1, width)
    for channel in values:
        drawn = np.interp(at, np.arange(len(channel)), channel)
        place = np.clip((drawn - low) / max(high - low, 1e-12), 0, 1)
        pixels[np.rint((height - 1) * (1 - place)).astype(int), np.arange(width)] = 0
    return picture(pixels, label, "pixels wide")
