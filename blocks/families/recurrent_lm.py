"""Looped language model as DiffusionBlocks (arXiv 2506.14202, section 4.5; Huginn, Geiping et al. 2025).

One block stands for many layers: a prelude reads the text once, a weight-tied core and a coda are run again
and again. The noise level takes the part of the iteration: training draws one at random and runs the block
once, where back-propagation through time would unroll all iterations; inference runs `recurrences`
denoising steps down the noise levels, each from the estimate of the one before.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..denoiser import Features
from ..noise import Partition
from ..preconditioning import Preconditioning
from ..settings import TextSettings
from . import Family
from .ar_lm import ARLanguageModel


class RecurrentLanguageModelSettings(TextSettings):
    """Looped language model: one block of prelude, core and coda, whose core stands for many layers."""

    family: Literal["recurrent-lm"] = "recurrent-lm"
    blocks: int = Field(1, ge=1, le=1)
    recurrences: int = Field(4, ge=1, le=128)


class RecurrentLanguageModel(ARLanguageModel):
    """Tokens (N, T) in and out. A quarter of `layers` is the prelude, a half the core, a quarter the coda.

    Core and coda are run together in every step, since what a step hands to the next is the estimate of the
    token, common to all steps, rather than a hidden state.
    """

    def __init__(
        self,
        *,
        partition: Partition,
        preconditioning: Preconditioning | None = None,
        features: Features = "raw",
        vocabulary: int = 97,
        hidden_size: int = 64,
        layers: int = 8,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        recurrences: int = 4,
    ) -> None:
        super().__init__(
            partition=partition,
            preconditioning=preconditioning,
            features=features,
            vocabulary=vocabulary,
            hidden_size=hidden_size,
            layers=layers,
            heads=heads,
            mlp_ratio=mlp_ratio,
            prelude=layers // 4,
        )
        self.steps_per_block = recurrences


FAMILY = Family(
    title="recurrent language model",
    settings=RecurrentLanguageModelSettings,
    network=RecurrentLanguageModel,
    small={"sequence_length": 5, "hidden_size": 12},
)
