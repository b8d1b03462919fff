"""A small model of every model family, with random examples and losses whose noise stays the same.

The families are those that the registry knows: a new one is taken by every test that asks for the fixture `variant`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fedblocks.blocks import BlockObjective, Denoiser, Draw, build_model
from fedblocks.blocks.families import family, family_names
from fedblocks.blocks.noise import Seeded
from fedblocks.blocks.pretrained.settings import PretrainedSettings
from fedblocks.blocks.settings import NoiseSettings, TransformerSettings
from fedblocks.errors import InputError
from fedblocks.experiments.bench.sensitivity.families import values_of
from support.places import draws_of


@dataclass(frozen=True)
class Variant:
    """A family as it may be set: with what its blocks read, and in as many blocks as it takes."""

    settings: TransformerSettings

    def __str__(self) -> str:
        read = self.settings.features
        return f"{self.settings.family}-{getattr(self.settings, 'objective', read)}"

    def model(self, seed: int = 0) -> Denoiser:
        torch.manual_seed(seed)
        net = build_model(self.settings, NoiseSettings())
        with torch.no_grad():
            for p in net.parameters():  # the parts that start at zero hide what lies behind them
                p.add_(0.05 * torch.randn_like(p))
        return net

    def cuts(self) -> list[Variant]:
        """The same layers in other numbers of blocks too."""
        if self.settings.blocks == 1 or isinstance(self.settings, PretrainedSettings):
            return [self]  # a pretrained model is cut when it is converted
        return [Variant(self.settings.model_copy(update={"blocks": blocks})) for blocks in (1, 2, 3, 6)]

    def examples(self, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Inputs and targets."""
        return values_of(self.settings.kind, count, torch.Generator().manual_seed(seed))


class FixedLosses:
    """Losses of places (n,) of examples, -> (n draws,), weighted by noise level; the noise draws stay the same.

    In the precision of the model's parameters.
    """

    def __init__(self, net: Denoiser, block: int, examples: tuple[Tensor, Tensor], draws: int) -> None:
        precision = next(net.parameters()).dtype

        def cast(values: Tensor) -> Tensor:
            return values.to(precision) if values.is_floating_point() else values

        self.net, self.block, self.draws = net, block, draws
        self.inputs, targets = (cast(values) for values in examples)
        self.targets = targets.repeat_interleave(draws, dim=0)
        drawn = net.draw(block, self.targets, Seeded(torch.Generator().manual_seed(1)))
        self.noise = Draw(cast(drawn.level), cast(drawn.noise))

    def __call__(self, places: Tensor) -> Tensor:
        rows = draws_of(places, self.draws)
        context = self.net.context(self.block, self.inputs[places])
        objective = BlockObjective(weight="edm")
        return objective.at(self.net, self.block, context, self.targets[rows], self.noise[rows])


def block_losses(
    net: Denoiser, block: int, inputs: Tensor, targets: Tensor, weight: Literal["unit", "edm"] = "edm"
) -> Tensor:
    """Losses of a block at noise from a fixed seed, (N,)."""
    source = Seeded(torch.Generator().manual_seed(0))
    return BlockObjective(weight=weight)(net, block=block, inputs=inputs, targets=targets, source=source)


def gradient_reaches(net: nn.Module) -> set[str]:
    """Names of the parameters that have a gradient which is not all zero; any other must have none at all."""
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    zero = [name for name, gradient in found.items() if not gradient.any()]
    assert not zero, f"a gradient path, but no gradient: {zero}"
    return set(found)


def _variants() -> list[Variant]:
    found = []
    for name in family_names():
        if name.startswith("pretrained-"):
            found += [Variant(settings) for settings in pretrained_settings(name)]
            continue
        small = family(name).small_settings()
        for features in ("raw", "prefix"):
            for cut in ({"layers": 6, "blocks": 3}, {"layers": 4, "blocks": 1}):
                try:
                    settings = type(small).model_validate(small.model_dump() | cut | {"features": features})
                    build_model(settings, NoiseSettings())
                except (ValidationError, InputError):  # one block alone, or no clean stream
                    continue
                found.append(Variant(settings))
                break
    return found


def pretrained_settings(name: str) -> list[TransformerSettings]:
    """A family's small model; over the families each objective, with each of what may train."""
    small = family(name).small_settings(layers=3, blocks=3)
    ways = {
        "pretrained-decoder": ("task-bias", "denoise-block", "mixed-lora"),
        "pretrained-text-classifier": ("task-block", "mixed-bias"),
        "pretrained-image-classifier": ("denoise-lora",),
    }
    found = []
    for way in ways[name]:
        objective, trains = way.split("-")
        changes = {"objective": objective, "trains": trains}
        found.append(type(small).model_validate(small.model_dump() | changes))
    return found


VARIANTS = _variants()
