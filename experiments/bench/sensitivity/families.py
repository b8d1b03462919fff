"""Small models of every family, with weights as they start or scaled until a last bit counts."""

from __future__ import annotations

import torch
from torch import Tensor

from ....blocks import BlockObjective, Denoiser, build_model
from ....blocks.denoiser import Draw
from ....blocks.families import family
from ....blocks.masked import MaskedDenoiser
from ....settings import DataKind, NoiseSettings
from .neighbours import Examples

SCALES = (1.0, 30.0)


def family_examples(
    name: str, count: int, *, scale: float, draws: int, interface: bool, half: bool = False
) -> Examples:
    """`count` examples, each with noise draws of its own that stay the same in every sum; `half`: in bfloat16."""
    settings = family(name).small_settings()
    torch.manual_seed(0)
    model = build_model(settings, NoiseSettings())
    block = model.freeze_all_but(0, interface).train()
    with torch.no_grad():
        for p in model.parameters():
            # adaLN starts at zero; a coordinator need not.
            p.copy_(scale * (p if p.any() else 0.02 * torch.randn_like(p)))
    g = torch.Generator().manual_seed(1)
    inputs, targets = values_of(settings.kind, count, g)
    level = model.partition.levels(0, torch.rand(count * draws, generator=g).double(), trained=True).float()
    noise = torch.rand if isinstance(model, MaskedDenoiser) else torch.randn
    shape = _noise_shape(model, targets[:1])
    drawn = noise(count * draws, *shape, generator=g)
    objective = BlockObjective()

    def losses(numbers: Tensor) -> Tensor:
        rows = (numbers[:, None] * draws + torch.arange(draws)).flatten()
        repeated = targets[numbers].repeat_interleave(draws, dim=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            context = model.context(0, inputs[numbers])
            return objective.at(model, 0, context, repeated, Draw(level[rows], drawn[rows]))

    return Examples(block, losses, draws)


def values_of(kind: DataKind, count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random inputs and targets of this kind."""
    inputs = _values(count, kind.inputs, kind.input_classes, g)
    for column, codes in enumerate(kind.categories, start=-len(kind.categories)):
        inputs[:, column] = torch.randint(codes, (count,), generator=g)
    return inputs, inputs if _same(kind) else _values(count, kind.targets, kind.target_classes, g)


def _noise_shape(model: Denoiser, target: Tensor) -> torch.Size:
    return model.clean(target).shape[1:]


def _same(kind: DataKind) -> bool:
    """Text: the targets are what is read."""
    return kind.input_classes is not None and len(kind.inputs) > 0 and kind.inputs == kind.targets


def _values(count: int, shape: tuple[int, ...], classes: int | None, g: torch.Generator) -> Tensor:
    if classes is None:
        return torch.rand(count, *shape, generator=g)
    return torch.randint(classes, (count, *shape), generator=g)
