"""Training on public data, without privacy: pretraining of all blocks, and the trainer of a single block.

A block's loss has gradients for its own parameters only, so every block has its own optimiser, and blocks may be
trained together, in random order, one after another, or in separate processes (see `single_block_training`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from .denoiser import Denoiser
from .groups import GroupedModule
from .information import LossCurve
from .noise import Partition, Seeded
from .objective import BlockObjective
from .settings import chosen_of

OnStep = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast each block is trained; see `PretrainingSettings`."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    schedule: Literal["together", "random", "sequential", "stacked"] = "together"
    noise_draws: int = 1
    ema: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    blocks: tuple[int, ...] | None = None
    rate_decay: float = 1.0

    def of(self, block: int, blocks: int) -> Schedule:
        """The same at the learning rate of this block, of so many: the last one has the whole rate."""
        return replace(self, learning_rate=self.learning_rate * self.rate_decay ** (blocks - 1 - block))

    def trained(self, blocks: int) -> tuple[int, ...]:
        """The blocks that are trained, of a model of so many."""
        return chosen_of(self.blocks, blocks)

    def steps_of(self, block: int) -> int:
        """How long this block is trained."""
        return self.steps if self.blocks is None or block in self.blocks else 0

    def order(self, blocks: int, generator: torch.Generator) -> Iterator[int]:
        """The block of every step; each block that is trained has `steps` steps ("random": on average)."""
        trained = self.trained(blocks)
        if self.schedule in ("sequential", "stacked"):
            yield from (b for b in trained for _ in range(self.steps))
        elif self.schedule == "random":
            for _ in range(self.steps * len(trained)):
                yield trained[int(torch.randint(len(trained), (1,), generator=generator))]
        else:
            yield from (b for _ in range(self.steps) for b in trained)


def optimizer_of(parameters: Iterable[nn.Parameter], schedule: Schedule) -> tuple[AdamW, OneCycleLR]:
    """Optimiser and learning rate of every training here, the baselines' included: AdamW, warm-up, cosine.

    Warm-up is a tenth of the steps; ten steps or fewer have none.
    """
    decay = schedule.weight_decay
    optimizer = AdamW(parameters, schedule.learning_rate, weight_decay=decay, betas=(0.9, 0.99), fused=True)
    steps = max(2, schedule.steps + 1)
    warm_up = 0.1 if steps > 10 else 0.0  # OneCycleLR divides by zero where a warm-up has exactly one step
    return optimizer, OneCycleLR(optimizer, schedule.learning_rate, total_steps=steps, pct_start=warm_up)


class BlockTrainer:
    """AdamW with warm-up and cosine on one block, with the state that a resume needs.

    trainer = BlockTrainer(model, 0, schedule)
    losses = trainer.step(inputs, targets, objective, generator)      # (N draws,)
    """

    def __init__(self, model: Denoiser, block: int, schedule: Schedule) -> None:
        self.model, self.block, self.schedule = model, block, schedule
        part = model.blocks[block]
        assert isinstance(part, GroupedModule)
        part.checkpointing = schedule.gradient_checkpointing
        self.part: nn.Module = part
        if schedule.compile:
            part.compile(dynamic=False)
        trained = set(model.trainable(block, interface=True))
        self.parameters = {name: p for name, p in part.named_parameters() if name in trained}
        own = schedule.of(block, len(model.blocks))
        self.optimizer, self.rate = optimizer_of(self.parameters.values(), own)
        self.average = (
            {name: p.detach().clone() for name, p in self.parameters.items()} if schedule.ema else None
        )
        self.taken = 0

    def step(
        self,
        inputs: Tensor,
        targets: Tensor,
        objective: BlockObjective,
        generator: torch.Generator,
        before: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One step on a batch; returns the noise levels and the unweighted losses, (N draws,) each.

        `before` as in `Denoiser.context`.
        """
        s, model = self.schedule, self.model
        targets = targets.repeat_interleave(s.noise_draws, dim=0)
        draw = model.draw(self.block, targets, Seeded(generator)).to(inputs.device)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=s.precision == "bfloat16"):
            context = model.context(self.block, inputs, before)
            losses = objective.at(model, self.block, context, targets, draw)
        self.optimizer.zero_grad(set_to_none=True)
        losses.mean().backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        if self.taken < s.steps:
            self.rate.step()
        self.taken += 1
        if self.average is not None:
            follow(self.average, self.parameters, s.ema, self.taken)
        return draw.level, losses.detach() / model.weight(draw.level, objective.weight)

    def finish(self) -> None:
        """Replace the block's weights by their moving average, if there is one."""
        if self.average is not None:
            with torch.no_grad():
                for name, p in self.parameters.items():
                    p.copy_(self.average[name])

    def state(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(), "rate": self.rate.state_dict(),
            "average": self.average, "taken": self.taken,
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.rate.load_state_dict(state["rate"])
        self.average, self.taken = state["average"], state["taken"]


def follow(
    average: dict[str, Tensor], parameters: Mapping[str, nn.Parameter], ema: float, taken: int
) -> None:
    """Update the moving average of these weights after their `taken`-th step."""
    # Less decay at first, so that a short run forgets its initial weights.
    decay = min(ema, (1 + taken) / (10 + taken))
    for name, p in parameters.items():
        average[name].lerp_(p.detach(), 1 - decay)


def train(
    model: Denoiser,
    inputs: Tensor,
    targets: Tensor,
    *,
    objective: BlockObjective,
    schedule: Schedule,
    generator: torch.Generator,
    refit_every: int | None = None,
    on_step: OnStep = lambda step: None,
) -> None:
    """Train the schedule's blocks in place; inputs (N, ...), targets (N, ...) on the model's device.

    Each step draws one batch with replacement. `refit_every`: after every so many steps of the first half of the
    training, the noise range is divided again, at equal shares of the measured loss curve.

    "stacked" is progressive stacking (Gong et al. 2019, ICML) block by block: a block that uses the features of the
    blocks before it has a similar task, so it starts from the weights of the last of them.
    """
    blocks = model.partition.blocks
    trainers = {b: BlockTrainer(model, b, schedule) for b in schedule.trained(blocks)}
    curve = LossCurve(model.partition.law)
    total = schedule.steps * len(trainers)
    model.train()
    for taken, b in enumerate(schedule.order(blocks, generator), start=1):
        if schedule.schedule == "stacked" and b and not trainers[b].taken:
            trainers[b - 1].finish()
            model.blocks[b].load_state_dict(model.blocks[b - 1].state_dict())
            trainers[b] = BlockTrainer(model, b, schedule)
        if not trainers[b].taken:
            model.measure(b, inputs)
        model.freeze_all_but(b)
        index = torch.randint(len(targets), (schedule.batch_size,), generator=generator).to(inputs.device)
        curve.add(*trainers[b].step(inputs[index], targets[index], objective, generator))
        if refit_every and taken % refit_every == 0 and taken <= total // 2 and curve.ready:
            model.partition = refitted(model.partition, curve)
        on_step(taken)
    for b in range(blocks):
        trainer = trainers.get(b)
        if trainer is None or not trainer.taken:
            model.measure(b, inputs)
        if trainer is not None:
            trainer.finish()
    model.requires_grad_(False).eval()


def refitted(partition: Partition, curve: LossCurve) -> Partition:
    """The same range, divided at equal shares of the measured loss curve."""
    levels, loss = curve.points()
    law = partition.law
    levels = [law.low, *levels[1:-1], law.high]
    return Partition.equi_information(law, partition.blocks, levels, loss, partition.overlap)
