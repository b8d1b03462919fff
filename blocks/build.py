"""From settings to a model."""

from __future__ import annotations

from ..config import ModelSettings, NoiseSettings
from .denoiser import Denoiser
from .noise import LogNormalNoise, Partition
from .preconditioning import Preconditioning
from .vit import ViTClassifier


def build_model(model: ModelSettings, noise: NoiseSettings) -> Denoiser:
    """A freshly initialised model of the family that the settings name, on the CPU."""
    law = LogNormalNoise(
        P_mean=noise.P_mean, P_std=noise.P_std, sigma_min=noise.sigma_min, sigma_max=noise.sigma_max
    )
    return ViTClassifier(
        partition=Partition.equi_probability(law, model.blocks, noise.overlap),
        preconditioning=Preconditioning(sigma_data=noise.sigma_data),
        **model.model_dump(exclude={"family", "blocks"}),
    )
