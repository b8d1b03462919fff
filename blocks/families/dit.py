"""Class-conditional diffusion transformer as DiffusionBlocks (arXiv 2506.14202, section 4.2 and appendix).

The target is the image and the network that of DiT (Peebles & Xie 2023): noisy patches are the tokens, noise
level and class modulate every layer. EDM preconditioning and weight (Karras et al. 2022); a block denoises
within its own interval of sigma, and a sampling step runs one block only.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..denoiser import Features, GaussianDenoiser, Metric
from ..frechet import classifier_on
from ..noise import Partition
from ..patches import images_of, patches_of, placed, positions
from ..preconditioning import Preconditioning
from ..sampler import sample_chain
from ..settings import ImageSettings
from ..taps import Tap
from ..transformer import Block, NoiseEmbedding, Shape
from . import Family

# x -> (x - CENTRE) SCALE brings pixels in [0, 1] near mean 0 and deviation 0.5: scanned digits have mean 0.3
# and 0.37, photographs 0.47 and 0.25. A statistic of the data would let one example move all the others.
CENTRE, SCALE = 0.4, 1.5
_AT_ONCE = 512


class DiTSettings(ImageSettings):
    """Class-conditional image generator: class in, image out."""

    label_side = "inputs"

    family: Literal["dit"] = "dit"


class DiT(GaussianDenoiser):
    """Classes (N,) in [0, classes) as inputs, images (N, C, S, S) in [0, 1] as targets and as predictions.

    labels = torch.arange(10)
    like = torch.empty(1, 1, 8, 8)
    images = sample_chain(model, labels, like, generator)[-1].clamp(0, 1)
    """

    metric: ClassVar[Metric] = Metric("frechet_distance", False, "number", "Fréchet distance")
    metric_by_example = False
    metric_of_one = False
    steps_per_block = 6

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
    ) -> None:
        if features != "raw":
            raise InputError("features", features, "a dit has no clean stream to pass on; expected 'raw'")
        super().__init__(partition, preconditioning or Preconditioning(), features)
        self.patch_size = patch_size
        self.image_shape = torch.Size((channels, image_size, image_size))
        patches, values = (image_size // patch_size) ** 2, channels * patch_size**2
        shape = Shape(hidden_size=hidden_size, heads=heads, mlp_ratio=mlp_ratio)

        def interface() -> nn.ModuleDict:
            head = nn.Linear(hidden_size, values)
            nn.init.zeros_(head.weight)  # starts as c_skip z, the best guess that ignores the image
            nn.init.zeros_(head.bias)
            return nn.ModuleDict(
                {
                    "patch": nn.Linear(values, hidden_size),
                    "position": positions(patches, hidden_size),
                    "noise": NoiseEmbedding(hidden_size),
                    "label": nn.Embedding(classes, hidden_size),
                    "norm": nn.LayerNorm(hidden_size),
                    "head": head,
                }
            )

        each = layers // partition.blocks
        self.blocks = nn.ModuleList(Block(interface(), each, shape) for _ in range(partition.blocks))

    def embed(self, block: int, inputs: Tensor) -> Tensor:
        """The class as one vector (N, 1, D): it modulates the layers and is no token among them."""
        return self.own(block, "label", inputs)[:, None]

    def clean(self, targets: Tensor) -> Tensor:
        return (targets - CENTRE) * SCALE

    def predict(self, block: int, z: Tensor, level: Tensor, context: Tensor) -> Tensor:
        part = self.part(block)
        own = part.interface
        tokens = own["patch"](patches_of(self.scaled(z, level), self.patch_size))  # (n m, T, D)
        tokens = tokens + placed(own["position"], tokens)
        label = context[:, 0].repeat_interleave(len(z) // len(context), dim=0)  # (n m, D)
        _, out = part(context[:, :0], tokens, self.condition(block, level) + label)
        raw = images_of(own["head"](own["norm"](out)), z.shape[1:], self.patch_size)
        return self.denoised(z, level, raw) / SCALE + CENTRE

    def estimate(self, prediction: Tensor) -> Tensor:
        return self.clean(prediction)

    def loss(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """Squared error a pixel, in the scale in which the images are denoised."""
        return (self.clean(prediction) - self.clean(targets)).square().flatten(1).mean(dim=1)

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """Denoising error of each example; the metric itself is one of sets: see `chain_quality`."""
        return self.loss(prediction, targets)

    @torch.no_grad()
    def chain_quality(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> list[float]:
        """Frechet distance to the targets, after each block, of as many images drawn for the same labels."""
        parts = inputs.to(self.device).split(_AT_ONCE)
        chains = [sample_chain(self, labels, targets[:1], generator) for labels in parts]
        targets = targets.cpu()
        distance = classifier_on(targets, inputs.cpu())
        return [distance(torch.cat(images).cpu(), targets) for images in zip(*chains, strict=True)]

    def taps(self, block: int) -> tuple[Tap, ...]:
        """The noised image; the label is part of what modulates it."""
        return (
            self.noised_tap(
                block, "image", embedding="patch", position="position", labels="label",
                cut=lambda images: patches_of(images, self.patch_size),
                join=lambda patches: images_of(patches, self.image_shape, self.patch_size),
            ),
        )  # fmt: skip

    def prior(self, shape: torch.Size, level: float, generator: torch.Generator) -> Tensor:
        """z of the variance of noisy images, which at the first of few levels the images still add to."""
        total = math.hypot(level, self.preconditioning.sigma_data)
        return total * torch.randn(shape, generator=generator, device=generator.device)


FAMILY = Family(
    title="image generator (DiT)",
    settings=DiTSettings,
    network=DiT,
    small={"image_size": 6, "patch_size": 3, "classes": 7},
)
