"""Small images embedded in the page, pixel by pixel."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image


def picture(pixels: npt.NDArray[np.generic], label: str) -> Markup:
    """An image (C, S, S) or (S, S) with values in [0, 1], as an embedded PNG with the alt text `label`."""
    out = io.BytesIO()
    Image.fromarray(_levels(pixels)).save(out, format="PNG", optimize=True)
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
