"""How close a reconstruction comes to its original, in dB, and from where on it counts as exact."""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks.taps import Field
from .intervals import Array

EXACT_IMAGE = 40.0
"""PSNR in dB from which on an image counts as rebuilt exactly."""
EXACT_OTHER = 60.0
"""Of series and numbers: signal over error, in dB; 60 is one part in a thousand."""
_CEILING = 300.0  # higher values are rounding noise, and an infinite score has no mean


def closeness(what: Field, estimates: Tensor, originals: Tensor) -> Array:
    """dB for each of (n, *shape): PSNR of images in [0, 1], else power of the original over that of the error."""
    error = (estimates.double() - originals.double()).square().reshape(len(originals), -1).mean(1)
    power = torch.ones_like(error)
    if what.what != "image":
        power = originals.double().square().reshape(len(originals), -1).mean(1).clamp_min(1e-12)
    decibels: Array = (10 * (power.log10() - error.clamp_min(1e-30).log10())).clamp(max=_CEILING).numpy()
    return decibels


def exact_from(what: Field) -> float:
    return EXACT_IMAGE if what.what == "image" else EXACT_OTHER


def exact_radius(what: Field, originals: Tensor) -> float:
    """The distance from any of the originals (n, *shape) beyond which no guess counts as exact."""
    flat = originals.double().reshape(len(originals), -1)
    if what.what == "image":
        return float(10 ** (-EXACT_IMAGE / 20) * flat.shape[1] ** 0.5)
    return float(10 ** (-EXACT_OTHER / 20) * float(flat.norm(dim=1).max()))
