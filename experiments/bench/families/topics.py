"""The text of the language rows: the help topics that Python ships, their last tenth held out.

The tenth before it is the validation text, to choose settings on.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ....blocks.families.ar_lm import ARLanguageModelSettings
from ....blocks.families.recurrent_lm import RecurrentLanguageModelSettings
from ....client.data import load_examples
from ....settings import DataSource

HELD_OUT = 512

Part = Literal["validation", "test"]


def topics(
    model: ARLanguageModelSettings | RecurrentLanguageModelSettings, part: Part
) -> tuple[Tensor, Tensor]:
    """Windows (N, T) to train on, and at most HELD_OUT of the part's."""
    windows = load_examples("data.public", DataSource(source="python-topics"), model, False).inputs
    tenth = len(windows) // 10
    end = len(windows) - (tenth if part == "validation" else 0)
    held_out = windows[end - tenth : end]
    chosen = torch.randperm(tenth, generator=torch.Generator().manual_seed(0))[:HELD_OUT]
    return windows[: len(windows) - 2 * tenth], held_out[chosen]
