"""Vision transformer classifier as DiffusionBlocks (arXiv 2506.14202, section 4.1 and appendix).

The target is the label's embedding. Its noisy version z stands where the class token would, and the image
patches stay clean. Label embeddings have unit norm in training and at inference alike.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..categorical_denoiser import EmbeddedDenoiser
from ..denoiser import Features, Metric
from ..noise import Partition
from ..patches import images_of, patches_of, placed, positions
from ..preconditioning import Preconditioning
from ..settings import ImageSettings, require
from ..taps import Tap, affine_tap
from ..transformer import Block, NoiseEmbedding, Shape, initialise
from . import Family


class ViTSettings(ImageSettings):
    """Image classifier: images in, label out."""

    label_side = "targets"

    family: Literal["vit"] = "vit"
    initializer_range: float = Field(0.02, gt=0, le=1, description="deviation of the weights at first")

    @model_validator(mode="after")
    def _table_fits(self) -> Self:
        require(self.classes <= self.hidden_size, "classes", self.classes, "must not exceed hidden_size")
        return self


class ViTClassifier(EmbeddedDenoiser):
    """Images (N, C, H, W) in [0, 1], labels in [0, classes).

    `layers` are dealt evenly to `partition.blocks` blocks; the label table is orthonormal.
    """

    metric: ClassVar[Metric] = Metric("accuracy", True, "share")

    def __init__(
        self,
        *,
        partition: Partition,
        preconditioning: Preconditioning | None = None,
        features: Features = "raw",
        image_size: int = 8,
        channels: int = 1,
        patch_size: int = 2,
        hidden_size: int = 64,
        layers: int = 6,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        classes: int = 10,
        initializer_range: float = 0.02,
    ) -> None:
        table = torch.linalg.qr(torch.randn(hidden_size, classes))[0].T.contiguous()
        super().__init__(partition, preconditioning or Preconditioning(), features, table)
        self.patch_size = patch_size
        patches = (image_size // patch_size) ** 2
        shape = Shape(hidden_size=hidden_size, heads=heads, mlp_ratio=mlp_ratio)

        def interface() -> nn.ModuleDict:
            return nn.ModuleDict(
                {
                    "patch": nn.Linear(channels * patch_size**2, hidden_size),
                    "position": positions(patches, hidden_size),
                    "noise": NoiseEmbedding(hidden_size),
                    "norm": nn.LayerNorm(hidden_size),
                    "head": nn.Linear(hidden_size, classes),
                }
            )

        each = layers // partition.blocks
        self.blocks = nn.ModuleList(Block(interface(), each, shape) for _ in range(partition.blocks))
        initialise(self.blocks, initializer_range)

    def embed(self, block: int, inputs: Tensor) -> Tensor:
        patches = self.own(block, "patch", patches_of(inputs, self.patch_size))
        return patches + placed(self.part(block).interface["position"], inputs)

    def predict(self, block: int, z: Tensor, level: Tensor, context: Tensor) -> Tensor:
        evidence = self.evidence(z, level)  # (N, classes)
        # As small as the embedded patches are at first: at size 1 it drowns what the layers add to it.
        token = self.posterior_mean(evidence)[:, None] / math.sqrt(self.table.shape[1])  # (N, 1, D)
        _, out = self.part(block)(context, token, self.condition(block, level))
        return self.own(block, "head", self.own(block, "norm", out[:, 0])) + evidence

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return (prediction.argmax(dim=1) == targets).float()

    def taps(self, block: int) -> tuple[Tap, ...]:
        """The first layer's keys and values of the patches; later blocks read features where they have them."""
        own = self.part(block).interface
        if block and self.features == "prefix":
            return ()
        patch, position = own["patch"], own["position"]
        assert isinstance(patch, nn.Linear)
        assert isinstance(position, nn.Embedding)
        side = self.patch_size * math.isqrt(position.num_embeddings)
        shape = torch.Size((patch.in_features // self.patch_size**2, side, side))
        return (
            affine_tap(
                "image", patch, position,
                cut=lambda images: patches_of(images, self.patch_size),
                join=lambda patches: images_of(patches, shape, self.patch_size),
                shown=self.part(block).directions(1),
                noisy_basis=self.table.T,  # of posterior means
            ),
        )  # fmt: skip


FAMILY = Family(
    title="image classifier (ViT)",
    settings=ViTSettings,
    network=ViTClassifier,
    small={"image_size": 6, "patch_size": 3, "classes": 7},
)
