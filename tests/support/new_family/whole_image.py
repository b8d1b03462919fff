"""Image classifier that reads the image as one token: a family as somebody might add it, in one file."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..categorical_denoiser import EmbeddedDenoiser
from ..denoiser import Features, Metric
from ..noise import Partition
from ..preconditioning import Preconditioning
from ..settings import ImageSettings
from ..transformer import Block, NoiseEmbedding, Shape
from . import Family


class WholeImageSettings(ImageSettings):
    label_side = "targets"

    family: Literal["whole-image"] = "whole-image"


class WholeImage(EmbeddedDenoiser):
    """Images (N, C, H, W), labels (N,)."""

    metric: ClassVar[Metric] = Metric("balanced_hits", True, "share", "share of hits")

    def __init__(
        self,
        *,
        partition: Partition,
        preconditioning: Preconditioning,
        features: Features,
        image_size: int,
        channels: int,
        patch_size: int,
        hidden_size: int,
        layers: int,
        heads: int,
        mlp_ratio: float,
        classes: int,
    ) -> None:
        table = torch.linalg.qr(torch.randn(hidden_size, classes))[0].T.contiguous()
        super().__init__(partition, preconditioning, features, table)
        shape = Shape(hidden_size=hidden_size, heads=heads, mlp_ratio=mlp_ratio)

        def interface() -> nn.ModuleDict:
            return nn.ModuleDict(
                {
                    "image": nn.Linear(channels * image_size**2, hidden_size),
                    "noise": NoiseEmbedding(hidden_size),
                    "head": nn.Linear(hidden_size, classes),
                }
            )

        each = layers // partition.blocks
        self.blocks = nn.ModuleList(Block(interface(), each, shape) for _ in range(partition.blocks))

    def embed(self, block: int, inputs: Tensor) -> Tensor:
        return self.own(block, "image", inputs.flatten(1))[:, None]

    def predict(self, block: int, z: Tensor, level: Tensor, context: Tensor) -> Tensor:
        evidence = self.evidence(z, level)
        token = self.posterior_mean(evidence)[:, None] / math.sqrt(self.table.shape[1])
        _, out = self.part(block)(context, token, self.condition(block, level))
        return self.own(block, "head", out[:, 0]) + evidence

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return (prediction.argmax(dim=1) == targets).float()


FAMILY = Family(
    title="whole-image classifier",
    settings=WholeImageSettings,
    network=WholeImage,
    small={"image_size": 6, "patch_size": 3, "classes": 7},
)
