"""From settings to a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .denoiser import Denoiser, Metric
from .families import ModelSettings, family
from .groups import Absent
from .noise import Partition
from .settings import NoiseSettings


def build_model(model: ModelSettings, noise: NoiseSettings, only: int | None = None) -> Denoiser:
    """A freshly initialised model of the family that the settings name, on the CPU.

    `equi-information` starts from the closed form where there is one, else from equal probability.
    `only`: build this block and the shared part alone; all blocks have the same shape, so it is a network of
    one block put in its place among absent ones.
    """
    network = family(model.family).network_of(model)
    options = model.network_options() | network.noise_options(noise)
    with torch.device("cpu"):  # numbers, whatever device the network is laid out on
        partition = partition_of(model, noise)
    if not network.blocks_alike:
        own: dict[str, Any] = {} if only is None else {"only": only}
        return network(partition=partition, **options, **own)
    if only is None:
        return network(partition=partition, **options)
    options["layers"] = model.layers // model.blocks
    built = network(partition=Partition(partition.law, (partition.law.high, partition.law.low)), **options)
    built.partition = partition
    [block] = built.blocks
    built.blocks = nn.ModuleList(block if b == only else Absent() for b in range(model.blocks))
    return built


def network_of(model: ModelSettings) -> type[Denoiser]:
    """The class of the network that the settings ask for."""
    return family(model.family).network_of(model)


def metric_of(model: ModelSettings) -> Metric:
    """What the family's predictions are judged by."""
    return network_of(model).metric


def partition_of(model: ModelSettings, noise: NoiseSettings) -> Partition:
    """The cut that the settings ask for."""
    network, blocks, overlap = family(model.family).network_of(model), model.blocks, noise.overlap
    law = network.noise_law(noise)
    if noise.edges is not None:
        informed = noise.partition == "equi-information"
        return Partition(law, noise.edges, overlap, "log-uniform" if informed else "law")
    if noise.partition == "uniform":
        return Partition.uniform(law, blocks, overlap)
    if noise.partition == "uniform-linear":
        return Partition.uniform(law, blocks, overlap, scale="linear")
    if noise.partition == "equi-information":
        known = network.information(law, model.kind.target_classes)
        if known is not None:
            return Partition.equi_information(law, blocks, *known, overlap)
    return Partition.equi_probability(law, blocks, overlap)
