"""From settings to a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from .denoiser import Denoiser, Metric
from .families.ar_lm import ARLanguageModel
from .families.dit import DiT
from .families.forecaster import Forecaster
from .families.masked_lm import MaskedLanguageModel
from .families.recurrent_lm import RecurrentLanguageModel
from .families.vit import ViTClassifier
from .information import posterior_entropy
from .noise import LogNormalNoise, MaskingRate, NoiseLaw, Partition
from .preconditioning import Preconditioning
from .settings import ModelSettings, NoiseSettings

FAMILIES: dict[str, type[Denoiser]] = {
    "vit": ViTClassifier,
    "dit": DiT,
    "ar-lm": ARLanguageModel,
    "recurrent-lm": RecurrentLanguageModel,
    "masked-lm": MaskedLanguageModel,
    "forecaster": Forecaster,
}
# Settings that describe the data or the cut rather than the network.
_ELSEWHERE = {"family", "blocks", "tokenizer", "sequence_length"}


class Absent(nn.Module):
    """Stands in the place of a block that is not in memory."""


def build_model(model: ModelSettings, noise: NoiseSettings, only: int | None = None) -> Denoiser:
    """A freshly initialised model of the family that the settings name, on the CPU.

    `equi-information` starts from the closed form where there is one, else from equal probability.
    `only`: build this block and the shared part alone; all blocks have the same shape, so it is a network of
    one block put in its place among absent ones.
    """
    options: dict[str, Any] = model.model_dump(exclude=_ELSEWHERE)
    if model.family != "masked-lm":
        options["preconditioning"] = Preconditioning(sigma_data=noise.sigma_data)
    partition, family = partition_of(model, noise), FAMILIES[model.family]
    if only is None:
        return family(partition=partition, **options)
    options["layers"] = model.layers // model.blocks
    built = family(partition=Partition(partition.law, (partition.law.high, partition.law.low)), **options)
    built.partition = partition
    [block] = built.blocks
    built.blocks = nn.ModuleList(block if b == only else Absent() for b in range(model.blocks))
    return built


def metric_of(model: ModelSettings) -> Metric:
    """What the family's predictions are judged by."""
    return FAMILIES[model.family].metric


def law_of(model: ModelSettings, noise: NoiseSettings) -> NoiseLaw:
    """The law of noise levels of a family."""
    if model.family == "masked-lm":
        return MaskingRate(rate_min=noise.rate_min)
    return LogNormalNoise(
        P_mean=noise.P_mean, P_std=noise.P_std, sigma_min=noise.sigma_min, sigma_max=noise.sigma_max
    )


def partition_of(model: ModelSettings, noise: NoiseSettings) -> Partition:
    """The cut that the settings ask for."""
    law, blocks, overlap = law_of(model, noise), model.blocks, noise.overlap
    if noise.edges is not None:
        informed = noise.partition == "equi-information"
        return Partition(law, noise.edges, overlap, "log-uniform" if informed else "law")
    if noise.partition == "uniform":
        return Partition.uniform(law, blocks, overlap)
    if noise.partition == "uniform-linear":
        return Partition.uniform(law, blocks, overlap, scale="linear")
    classes = model.kind.target_classes
    if noise.partition == "equi-information" and classes is not None and model.family != "masked-lm":
        levels, entropy = posterior_entropy(law, classes)
        return Partition.equi_information(law, blocks, levels, entropy, overlap)
    return Partition.equi_probability(law, blocks, overlap)
