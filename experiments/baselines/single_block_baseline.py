"""End-to-end image generator and masked language model: the same network as one block over all noise.

DiT and masked language model are diffusion models either way, so their end-to-end training is B=1: all layers
learn every noise level, and every sampling step runs all of them.
"""

from __future__ import annotations

from ...blocks import Denoiser, build_model
from ...blocks.families.dit import DiTSettings
from ...blocks.families.masked_lm import MaskedLanguageModelSettings
from ...settings import NoiseSettings


def end_to_end(model: DiTSettings | MaskedLanguageModelSettings, noise: NoiseSettings) -> Denoiser:
    """All L layers as one block."""
    return build_model(model.model_copy(update={"blocks": 1}), noise)


def shallow(model: DiTSettings | MaskedLanguageModelSettings, noise: NoiseSettings) -> Denoiser:
    """One block's L/B layers, trained end to end: what the depth is worth."""
    return build_model(model.model_copy(update={"layers": model.layers // model.blocks, "blocks": 1}), noise)
