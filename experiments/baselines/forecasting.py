"""What the forecaster's blocks are compared with.

`single_block_baseline`: the same network as one block over all noise levels, with all its layers or with one block's.
`QuantileForecaster`: no diffusion at all, the usual strong way to a probabilistic forecast: a patch
transformer (Nie et al. 2023) with a quantile head, trained end to end on the pinball loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...blocks import Denoiser, Schedule, build_model
from ...blocks.families.forecaster import ForecasterSettings, patches_of
from ...blocks.patches import placed, positions
from ...blocks.training import optimizer_of
from ...blocks.transformer import Layer, Shape
from ...settings import NoiseSettings

QUANTILES = 39  # odd, so that the median is one of them


def uncut(model: ForecasterSettings, noise: NoiseSettings, layers: int) -> Denoiser:
    """The forecaster of so many layers as one block, trained end to end."""
    return build_model(model.model_copy(update={"blocks": 1, "layers": layers}), noise)


class QuantileForecaster(nn.Module):
    """Past (N, C, T) -> quantiles of the future at `levels` (N, QUANTILES, C, horizon), rising."""

    levels: Tensor

    def __init__(self, model: ForecasterSettings) -> None:
        super().__init__()
        self.settings = model
        patches = model.context_length // model.patch_size
        shape = Shape(hidden_size=model.hidden_size, heads=model.heads, mlp_ratio=model.mlp_ratio)
        self.patch = nn.Linear(model.channels * model.patch_size, model.hidden_size)
        self.position = positions(patches, model.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(model.layers))
        self.norm = nn.LayerNorm(model.hidden_size)
        self.head = nn.Linear(patches * model.hidden_size, QUANTILES * model.channels * model.horizon)
        self.register_buffer("levels", (torch.arange(QUANTILES) + 0.5) / QUANTILES)

    def forward(self, past: Tensor) -> Tensor:
        patches: Tensor = self.patch(patches_of(past, self.settings.patch_size))
        x = patches + placed(self.position, past)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            x = layer.clean(x)
        flat: Tensor = self.head(self.norm(x).flatten(1))
        quantiles = flat.view(len(past), QUANTILES, self.settings.channels, self.settings.horizon)
        return quantiles.sort(dim=1).values


def quantile_score(quantiles: Tensor, targets: Tensor, levels: Tensor) -> Tensor:
    """CRPS of each example as twice the mean pinball loss: (N, K, C, H) and (N, C, H) -> (N,)."""
    error = targets[:, None] - quantiles
    level = levels.view(-1, 1, 1)
    return 2 * torch.maximum(level * error, (level - 1) * error).flatten(1).mean(dim=1)


def train_quantiles(
    model: QuantileForecaster, inputs: Tensor, targets: Tensor, schedule: Schedule, generator: torch.Generator
) -> None:
    """End to end, in the recipe of `blocks.training.BlockTrainer`."""
    optimizer, rate = optimizer_of(model.parameters(), schedule)
    for _ in range(schedule.steps):
        index = torch.randint(len(targets), (schedule.batch_size,), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        quantile_score(model(inputs[index]), targets[index], model.levels).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
    model.requires_grad_(False).eval()
