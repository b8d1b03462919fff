"""Shadow models of one block, and what a model tells of an example: its loss at several noise levels."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ...blocks import BlockObjective, Denoiser, Draw, Seeded
from ...blocks.examples import Examples
from ...blocks.training import BlockTrainer, Schedule
from ..intervals import Array

LEVELS = (0.1, 0.5, 0.9)  # quantiles of a block's noise levels
_DRAWS = 2
_AT_ONCE = 256
_LEAST = 1e-9  # loss, below which there is only rounding


def trained(
    public: Denoiser, block: int, examples: Examples, *, interface: bool, objective: BlockObjective,
    schedule: Schedule, generator: torch.Generator,
) -> Denoiser:  # fmt: skip
    """A copy of the public model, its block trained on these examples without noise."""
    model = copy.deepcopy(public).train()
    trainer = BlockTrainer(model, block, schedule)
    model.freeze_all_but(block, interface)
    for _ in range(schedule.steps):
        index = torch.randint(len(examples), (schedule.batch_size,), generator=generator)
        trainer.step(examples.inputs[index], examples.targets[index], objective, generator)
    return model.requires_grad_(False).eval()


class Signals:
    """How well a model fits each example at fixed draws, the same ones for every model.

    Of a loss l the signal is the logit of exp(-l), which is closer to a Gaussian than l itself (Carlini et al. 2022,
    section IV-C); where l is small, that is -log l.

    signals = Signals(model, block, objective, candidates, generator)
    signals.of(target), signals.of(shadow)                             # (levels, N) each
    """

    def __init__(
        self, model: Denoiser, block: int, objective: BlockObjective, examples: Examples, generator: torch.Generator
    ) -> None:  # fmt: skip
        self.block, self.objective, self.examples = block, objective, examples
        source = Seeded(generator)
        many = model.draw(block, examples.targets[:1].repeat_interleave(1000, 0), source).level.double()
        self.levels = torch.quantile(many, torch.tensor(LEVELS, dtype=torch.float64)).float()
        self.noise = [model.draw(block, examples.targets, source).noise for _ in range(_DRAWS)]

    @torch.no_grad()
    def of(self, model: Denoiser) -> Array:
        """(levels, N) float64."""
        found = []
        for start in range(0, len(self.examples), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            batch = self.examples[part]
            context = model.context(self.block, batch.inputs)
            found.append(torch.stack([self._at(model, level, context, batch, part) for level in self.levels]))
        return torch.cat(found, dim=1).numpy()

    def _at(self, model: Denoiser, level: Tensor, context: Tensor, batch: Examples, part: slice) -> Tensor:
        losses = [
            self.objective.at(model, self.block, context, batch.targets, Draw(level.expand(len(batch)), noise[part]))
            for noise in self.noise
        ]  # fmt: skip
        return -torch.stack(losses).mean(0).double().clamp_min(_LEAST).expm1().log()
