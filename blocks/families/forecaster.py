"""Probabilistic forecaster as DiffusionBlocks: the future's patches are denoised given the past's.

The paper has no forecaster; this is its image generator (arXiv 2506.14202, section 4.2) with a clean stream:
the past runs through the layers as a patch transformer (Nie et al. 2023) and never sees the future, whose
noisy patches read it and each other, so that a sample is a joint draw over horizon and channels. A patch
spans all channels.

Network and targets live in units of each window's own context, see `normalise`; `forecast` takes and returns
the series' own units.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..denoiser import Features, GaussianDenoiser, Metric
from ..forecast_metrics import crps
from ..noise import Partition
from ..patches import placed, positions
from ..preconditioning import Preconditioning
from ..sampler import sample_chain
from ..series import location_and_scale, normalise
from ..settings import SeriesSettings, require
from ..taps import Tap, affine_tap
from ..transformer import Block, NoiseEmbedding, Shape
from . import Family


class ForecasterSettings(SeriesSettings):
    """Probabilistic forecaster: the last `context_length` values in, `horizon` values out, per channel."""

    family: Literal["forecaster"] = "forecaster"
    patch_size: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        for name, length in (("context_length", self.context_length), ("horizon", self.horizon)):
            require(
                length % self.patch_size == 0, "patch_size", self.patch_size, f"must divide {name}={length}"
            )
        return self


class Forecaster(GaussianDenoiser):
    """Past (N, C, context_length) and future (N, C, horizon), both normalised by their context."""

    metric: ClassVar[Metric] = Metric("crps", False, "number", "CRPS")
    metric_by_example = False

    def __init__(
        self,
        *,
        partition: Partition,
        preconditioning: Preconditioning | None = None,
        features: Features = "raw",
        context_length: int = 96,
        horizon: int = 24,
        channels: int = 1,
        patch_size: int = 8,
        hidden_size: int = 64,
        layers: int = 6,
        heads: int = 4,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__(partition, preconditioning or Preconditioning(), features)
        self.channels, self.patch_size, self.horizon = channels, patch_size, horizon
        shape = Shape(hidden_size=hidden_size, heads=heads, mlp_ratio=mlp_ratio)
        width = channels * patch_size

        def interface() -> nn.ModuleDict:
            return nn.ModuleDict(
                {
                    "past": nn.Linear(width, hidden_size),
                    "past_position": positions(context_length // patch_size, hidden_size),
                    "future": nn.Linear(width, hidden_size),
                    "future_position": positions(horizon // patch_size, hidden_size),
                    "noise": NoiseEmbedding(hidden_size),
                    "norm": nn.LayerNorm(hidden_size),
                    "head": nn.Linear(hidden_size, width),
                }
            )

        each = layers // partition.blocks
        self.blocks = nn.ModuleList(Block(interface(), each, shape) for _ in range(partition.blocks))

    def embed(self, block: int, inputs: Tensor) -> Tensor:
        own = self.part(block).interface
        patches: Tensor = own["past"](patches_of(inputs, self.patch_size))
        return patches + placed(own["past_position"], inputs)

    def clean(self, targets: Tensor) -> Tensor:
        return targets

    def predict(self, block: int, z: Tensor, level: Tensor, context: Tensor) -> Tensor:
        part = self.part(block)
        own = part.interface
        tokens = own["future"](patches_of(self.scaled(z, level), self.patch_size))  # (n m, horizon/p, D)
        tokens = tokens + placed(own["future_position"], z)
        _, out = part(context, tokens, self.condition(block, level))
        return self.denoised(z, level, series_of(own["head"](own["norm"](out)), self.channels))

    def estimate(self, prediction: Tensor) -> Tensor:
        return prediction

    def loss(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return (prediction - targets).square().flatten(1).mean(dim=1)

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """CRPS in units of the context's deviation, of the m samples side by side in (N m, C, horizon)."""
        return crps(prediction.view(len(targets), -1, *targets.shape[1:]), targets)

    @torch.no_grad()
    def chain_quality(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> list[float]:
        """Mean CRPS after each block, from 8 samples of 4 steps a block: a single sample has no spread."""
        total = torch.zeros(self.partition.blocks, dtype=torch.float64)
        for x, y in zip(inputs.split(64), targets.split(64), strict=True):
            x, y = x.to(self.device), y.to(self.device)
            for b, samples in enumerate(sample_chain(self, x, y, generator, steps_per_block=4, draws=8)):
                total[b] += self.score(samples, y).double().sum().cpu()
        return [float(v) for v in total / len(targets)]

    def prior(self, shape: torch.Size, level: float, generator: torch.Generator) -> Tensor:
        """The law of z where it tells nothing: the targets' own spread and the noise's."""
        spread = math.hypot(level, self.preconditioning.sigma_data)
        return spread * torch.randn(shape, generator=generator, device=generator.device)

    def taps(self, block: int) -> tuple[Tap, ...]:
        """The first layer's keys and values of the past, and its noised future; later blocks read features where they
        have them."""
        own = self.part(block).interface
        if block and self.features == "prefix":
            return ()
        position = own["past_position"]
        assert isinstance(position, nn.Embedding)
        return (
            affine_tap(
                "past", own["past"], position,
                cut=lambda series: patches_of(series, self.patch_size),
                join=lambda patches: series_of(patches, self.channels),
                noisy=self.horizon // self.patch_size,
                shown=self.part(block).directions(self.horizon // self.patch_size),
            ),
            self.noised_tap(
                block, "future", embedding="future", position="future_position",
                cut=lambda series: patches_of(series, self.patch_size),
                join=lambda patches: series_of(patches, self.channels),
                clean_tokens=position.num_embeddings,
            ),
        )  # fmt: skip


def forecast(
    model: Forecaster,
    history: Tensor,
    generator: torch.Generator,
    *,
    samples: int = 50,
    steps_per_block: int = 8,
) -> Tensor:
    """Samples of the future (N, samples, C, horizon) in the units of `history` (N, C, context_length)."""
    location, scale = location_and_scale(history)
    inputs = normalise(history, history[..., :0])[0].to(model.device, torch.float32)
    like = inputs.new_zeros(len(inputs), model.channels, model.horizon)
    drawn = sample_chain(model, inputs, like, generator, steps_per_block, draws=samples)[-1]
    future = drawn.view(len(inputs), samples, *like.shape[1:]).to(history)
    # A constant history has no scale, and its forecast is that constant.
    return location[:, None] + scale[:, None] * future


def patches_of(series: Tensor, patch_size: int) -> Tensor:
    """(N, C, T) -> (N, T/p, C p)."""
    n, c, t = series.shape
    cut = series.reshape(n, c, t // patch_size, patch_size).transpose(1, 2)  # (N, T/p, C, p)
    return cut.reshape(n, t // patch_size, c * patch_size)


def series_of(patches: Tensor, channels: int) -> Tensor:
    """The inverse of `patches_of`: (N, T/p, C p) -> (N, C, T)."""
    n, count, width = patches.shape
    cut = patches.reshape(n, count, channels, width // channels).transpose(1, 2)  # (N, C, T/p, p)
    return cut.reshape(n, channels, count * width // channels)


FAMILY = Family(
    title="forecaster",
    settings=ForecasterSettings,
    network=Forecaster,
    small={"context_length": 9, "horizon": 3, "patch_size": 3},
)
