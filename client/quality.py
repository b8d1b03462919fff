"""A model's quality on a company's own held-out examples."""

from __future__ import annotations

import math

import torch

from ..blocks import Denoiser
from ..blocks.examples import Examples

# Spread evenly over the examples, so that a large set takes no longer.
MOST_EXAMPLES = 2000


def spread(data: Examples) -> Examples:
    """As many examples as are judged."""
    count = min(len(data), MOST_EXAMPLES)
    return data[torch.arange(count) * len(data) // count]


def quality_of(model: Denoiser, data: Examples) -> float | None:
    """None where no number comes out: of too few examples, or of weights that are finite but huge."""
    # One seed for both models, so that they differ by their weights only.
    generator = torch.Generator().manual_seed(0)
    try:
        found = model.eval().chain_quality(data.inputs, data.targets, generator)[-1]
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return None
    return found if math.isfinite(found) else None
