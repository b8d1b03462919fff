"""A small private training of every family, as a company's handler runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fedblocks.blocks import Denoiser, build_model
from fedblocks.blocks.examples import Examples
from fedblocks.client.batches import fixed_losses, random_examples, random_weights
from fedblocks.client.policy import Policy
from fedblocks.client.training import train_block
from fedblocks.experiments.presets import load_settings
from fedblocks.experiments.simulation.preparation import make_plan
from fedblocks.privacy.randomness import Randomness
from fedblocks.privacy.source import CryptographicSource
from fedblocks.protocol.release import block_size
from fedblocks.settings import Plan

_SMALL = ("hidden_size=16", "heads=2")
_DEEP = ("layers=2", "blocks=2")
_TEXT = ("sequence_length=12", *_DEEP)
# Family -> preset, and what makes it small.
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "vit": ("digits", ("patch_size=4", *_DEEP)),
    "dit": ("dit-digits", ("patch_size=4", *_DEEP)),
    "ar-lm": ("ar-text", _TEXT),
    "masked-lm": ("masked-text", _TEXT),
    "recurrent-lm": ("recurrent-text", ("sequence_length=12", "layers=4")),
    "tabular": ("tabular-cancer", _DEEP),
    "forecaster": (
        "forecast-series",
        ("context_length=8", "horizon=4", "patch_size=4", *_DEEP),
    ),
}


@dataclass(frozen=True)
class Setting:
    plan: Plan
    model: Denoiser
    data: Examples
    policy: Policy

    @property
    def size(self) -> int:
        return block_size(self.model, 0, self.plan.training)

    def train(self, randomness: Randomness, data: Examples | None = None) -> npt.NDArray[np.uint32]:
        data = self.data if data is None else data
        return train_block(self.model, 0, data, self.plan, 5, randomness, self.policy)

    def losses(self, count: int, seed: int = 0) -> Callable[[Tensor], Tensor]:
        """The losses of `count` random examples, each with noise of its own that stays the same."""
        source = CryptographicSource(Randomness.from_seed(seed, "examples"))
        return fixed_losses(self.model, 0, self.plan, self.policy.data, count, source)


def setting(family: str, *overrides: str, examples: int = 40, noise_multiplier: float = 1.0) -> Setting:
    """With weights and examples drawn at random; everybody's examples are in every batch."""
    preset, small = FAMILIES[family]
    settings = load_settings(
        preset,
        [
            *(f"model.{part}" for part in (*_SMALL, *small)),
            "training.sampling_rate=1.0",
            "training.expected_batch_size=20",
            "training.noise_draws=2",
            "training.interface=true",
            f"privacy.noise_multiplier={noise_multiplier}",
            "privacy.epsilon=1e6",
            *overrides,
        ],
    )
    model = build_model(settings.model, settings.noise)
    plan = make_plan(settings, model, "run")
    source = CryptographicSource(Randomness.from_seed(0, family))
    _randomise(model, source)
    policy = Policy(company="acme", epsilon_ceiling=1e6, delta=1e-5, data=settings.model.kind)
    return Setting(plan, model, random_examples(settings.model.kind, examples, source), policy)


def _randomise(model: Denoiser, source: CryptographicSource) -> None:
    with random_weights(model, source):
        drawn = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        p.data.copy_(drawn[name])
