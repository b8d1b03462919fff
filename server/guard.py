"""The guard: how far the model may move from what it could do before, judged on public data alone.

The public loss is the mean over blocks of what each minimises, on at most 500 public examples that training has not
seen, at noise draws that are the same every time. Adaptation gives up some of it for what the companies know; a model
that is driven apart (a server learning rate too high, poisoned sums) loses all of it. No budget is spent on looking.

guard = Guard.of(settings, plan, evaluator)
first = guard.loss(public_model)
guard.look(1, model, first).past
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch

from ..blocks import BlockObjective, Denoiser, Seeded
from ..blocks.examples import Examples
from ..errors import ProtocolError
from ..settings import GuardSettings, Plan, RunSettings
from .evaluation import Evaluator
from .run_folder import RunFolder

log = logging.getLogger("fedblocks.run")

STOPPED = "public_loss_rose"
"""The status of a round that stopped its run, and the code of the error that ends it."""
_MOST = 500
_AT_ONCE = 64


@dataclass(frozen=True)
class Look:
    """The public loss after a round, and how often it is the public model's; none: not finite."""

    round: int
    public_loss: float | None
    first: float
    limit: float
    stops: bool

    @property
    def times(self) -> float | None:
        if self.public_loss is None or self.first <= 0:
            return None
        return self.public_loss / self.first

    @property
    def past(self) -> bool:
        return self.public_loss is None or self.public_loss > self.limit * self.first

    @property
    def ends_the_run(self) -> bool:
        return self.past and self.stops

    def to_json(self) -> dict[str, Any]:
        return {
            "public_loss": self.public_loss,
            "times": self.times,
            "limit": self.limit,
            "flagged": self.past,
            "stopped": self.ends_the_run,
        }

    @property
    def words(self) -> str:
        said = "is not finite" if self.public_loss is None else f"has risen to {self.public_loss:.4g}"
        times = "" if self.times is None else f", {self.times:.3g} times as much"
        was = f"the public model's was {self.first:.4g}"
        return (
            f"round {self.round}: the loss on public data {said}{times}; {was} (guard.limit={self.limit:g})"
        )

    def error(self) -> ProtocolError:
        """With which the run ends; the model is that of the round before."""
        kept = f"checkpoints/round-{self.round - 1:04d}"
        return ProtocolError(
            STOPPED, f"{self.words}. What the round did is discarded; {kept} is the model before it"
        )


class Guard:
    """`data`: public examples that the model was not trained on."""

    def __init__(self, settings: GuardSettings, data: Examples, objective: BlockObjective, seed: int) -> None:
        self._settings, self._objective, self._seed = settings, objective, seed
        self._data = spread_evenly(data, _MOST)

    @classmethod
    def of(cls, settings: RunSettings, plan: Plan, evaluator: Evaluator) -> Guard:
        objective = BlockObjective(weight=plan.noise.weight)
        return cls(settings.guard, evaluator.sets["public"], objective, settings.seed)

    def due(self, *, evaluated: bool) -> bool:
        """A run that may be stopped is looked at after every round, else after those that are evaluated."""
        return self.on and (evaluated or self._settings.stops)

    @property
    def on(self) -> bool:
        return self._settings.public_loss != "off"

    @torch.no_grad()
    def loss(self, model: Denoiser) -> float:
        """The public loss of this model."""
        model.eval()
        source = Seeded(torch.Generator().manual_seed(self._seed))
        total, device = 0.0, model.device
        for rows in torch.arange(len(self._data)).split(_AT_ONCE):
            part = self._data[rows]
            inputs, targets = part.inputs.to(device), part.targets
            for block, context in enumerate(model.contexts(inputs)):
                draw = model.draw(block, targets, source).to(device)
                total += float(
                    self._objective.at(model, block, context, targets.to(device), draw).double().sum()
                )
        return total / (len(self._data) * len(model.blocks))

    def finite_loss(self, model: Denoiser) -> float | None:
        """None where it is not finite."""
        found = self.loss(model)
        return found if math.isfinite(found) else None

    def look(self, round_: int, model: Denoiser, first: float) -> Look:
        """The model after a round, beside the public loss `first` that the run began with."""
        look = Look(round_, self.finite_loss(model), first, self._settings.limit, self._settings.stops)
        if look.past and not look.stops:
            log.warning("%s", look.words)
        return look


def spread_evenly(data: Examples, most: int) -> Examples:
    """At most so many of the examples."""
    return data[torch.linspace(0, len(data) - 1, min(len(data), most)).round().long()]


def first_loss(run: RunFolder) -> float | None:
    """Of the public model, as the run's first line of metrics has it; none in a run that had no guard then."""
    rows = run.metrics()
    found = rows[0].get("public_loss") if rows else None
    return found if isinstance(found, float) else None
