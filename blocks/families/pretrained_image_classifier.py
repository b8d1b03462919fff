"""A pretrained vision transformer (ViT, DeiT, DINOv2), adapted to tell images of several classes apart."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..pretrained.classifier import PretrainedClassifier
from ..pretrained.settings import PretrainedClassifierSettings
from ..pretrained.small import small_model
from ..settings import ImageSettings
from . import Family


class PretrainedImageClassifierSettings(PretrainedClassifierSettings, ImageSettings):
    """An image's first token is the class token."""

    label_side = "targets"
    kind_of_model = "vision"

    family: Literal["pretrained-image-classifier"] = "pretrained-image-classifier"
    pooling: Literal["mean", "first"] = "first"

    @classmethod
    def sizes(cls) -> tuple[str, ...]:
        return (*super().sizes(), "image_size", "channels", "patch_size")


class PretrainedImageClassifier(PretrainedClassifier):
    """Images (N, C, H, W) in [0, 1]; labels (N,)."""

    def present(self, inputs: Tensor, tokens: int) -> Tensor:
        return torch.ones(len(inputs), tokens, dtype=torch.bool, device=inputs.device)


def _small(layers: int, blocks: int) -> dict[str, object]:
    return {"pretrained": str(small_model("vision", layers, blocks)), "classes": 7}


FAMILY = Family(
    title="pretrained image classifier",
    settings=PretrainedImageClassifierSettings,
    network=PretrainedImageClassifier,
    small=_small,
)
