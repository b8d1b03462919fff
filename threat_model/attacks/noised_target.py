"""Images that a block generates and futures that it forecasts: what its noise is added to comes out all the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...blocks.examples import Examples
from ...blocks.taps import NoisedTap
from ..ceilings import Ceilings
from ..closeness import closeness
from ..exhibits import Exhibit
from ..noised_target import solve, unsuited
from ..prior import GaussianPrior
from ..releases import Release, clip_of, raw_gradient, released
from ..results import Result
from ..scoring import Attacked, blind_share, guessed
from ..subject import Subject
from ..winning import wins_at
from . import Attack

_CASES = 20
_FEW = 4  # cases of the search for the noise at which the attack wins
_WHOLE = 1e-2  # residual above which the attacker itself knows that it failed
_UNCLIPPED = 0.9  # of the bound: a gradient that is shorter was not clipped


@dataclass
class _Guesses:
    """What one condition gave, in the order of the victims."""

    values: Tensor
    labels: npt.NDArray[np.bool_]


def _tap(subject: Subject, block: int) -> NoisedTap | None:
    return next((tap for tap in subject.problem(block).taps if isinstance(tap, NoisedTap)), None)


def _applies(subject: Subject) -> str | None:
    (block,) = subject.blocks
    tap = _tap(subject, block)
    if tap is None:
        return "no block of this model embeds a real target with noise on it by a linear map of its own"
    if subject.plan.training.local_steps > 1:
        return "the modulation moves from step to step, so that no one curve of noise levels fits the sum"
    return unsuited(subject.problem(block), tap)


def _run(subject: Subject) -> Iterator[Result | Exhibit]:
    (block,) = subject.blocks
    problem, tap = subject.problem(block), _tap(subject, block)
    assert tap is not None
    attacker = _Attacker(subject, block, tap)
    victims = subject.victims(_CASES, ATTACK.name, block)
    originals = problem.values_of(victims)[tap.field]

    def shown(i: int, noisy: bool) -> Release:
        return released(subject, block, victims[i : i + 1], ATTACK.name, i, noisy=noisy)

    views: list[tuple[str, str, bool, Callable[[int], Release]]] = [
        (
            "insider", "one example's raw gradient", False,
            lambda i: raw_gradient(subject, block, victims[i : i + 1], ATTACK.name, i),
        ),
        (
            "colluding-coordinator", "one company's release, all other examples known", True,
            lambda i: shown(i, noisy=True),
        ),
    ]  # fmt: skip
    control = attacker.guesses(lambda i: shown(i, noisy=False), victims)
    subject.clock.tell(0.3, f"noised target, block {block}")
    winning = _wins_at(attacker, [shown(i, noisy=False) for i in range(min(_FEW, len(victims)))], originals)
    for done, (adversary, view, protected, make) in enumerate(views, start=1):
        started = time.monotonic()
        found = attacker.guesses(make, victims)
        ceilings = Ceilings.of(subject, block)
        attacked = Attacked(
            attack=ATTACK.name, adversary=adversary, view=view, block=block, of=problem.by_name[tap.field],
            originals=originals, released=found.values, control=control.values if protected else None,
            prior=attacker.prior.mode.expand_as(originals), protected=protected,
            wins_at=winning if protected else None, budget={"cases": len(victims), "solutions": 1},
            seconds=time.monotonic() - started, ceilings=ceilings,
        )  # fmt: skip
        yield from attacked.results()
        if protected:
            yield attacked.exhibit()
        if tap.labels is not None:
            yield guessed(
                attack=ATTACK.name, adversary=adversary, view=view, block=block, of=problem.by_name["label"],
                released=found.labels, control=control.labels if protected else None,
                blind=blind_share(problem.values_of(subject.public)["label"], victims.inputs), protected=protected,
                budget={"cases": len(victims)}, ceilings=ceilings,
            )  # fmt: skip
        subject.clock.tell(0.5 + 0.5 * done / len(views), f"noised target, block {block}")


class _Attacker:
    """What it knows: the model, the plan and public examples. Where a solution does not fit, it keeps to these."""

    def __init__(self, subject: Subject, block: int, tap: NoisedTap) -> None:
        self.subject, self.block, self.tap = subject, block, tap
        mechanism = subject.mechanism(block)
        self.problem, self.clip, self.clipping = (
            subject.problem(block),
            clip_of(mechanism),
            mechanism.clipping,
        )
        known = self.problem.values_of(subject.public)
        fields = [f for f in self.problem.fields if f.continuous and not f.nuisance]
        self.priors = {f.name: GaussianPrior.fit(known[f.name], f.bounds) for f in fields}
        self.common = int(torch.bincount(known["label"]).argmax()) if "label" in known else 0

    @property
    def prior(self) -> GaussianPrior:
        return self.priors[self.tap.field]

    def guess(self, release: Release) -> tuple[Tensor, int]:
        short = self.clipping == "flat" and float(release.vector.norm()) < _UNCLIPPED * self.clip
        found = solve(self.problem, self.tap, release, self.priors, whole=short)
        fits = found.residual < _WHOLE
        label = self.common if found.label is None or not fits else found.label
        return found.values if fits else self.prior.mode, label

    def guesses(self, make: Callable[[int], Release], victims: Examples) -> _Guesses:
        found = [self.guess(make(i)) for i in range(len(victims))]
        labels = np.zeros(0, dtype=np.bool_)
        if self.tap.labels is not None:
            labels = np.array([label == int(y) for (_, label), y in zip(found, victims.inputs, strict=True)])
        return _Guesses(torch.stack([values for values, _ in found]), labels)


def _wins_at(attacker: _Attacker, clean: list[Release], originals: Tensor) -> float | None:
    """The noise multiplier up to which a company's release gives a target away visibly."""
    truth, field = originals[: len(clean)], attacker.problem.by_name[attacker.tap.field]
    without = closeness(field, attacker.prior.mode.expand_as(truth), truth)

    def gain(z: float) -> float:
        found = []
        for i, release in enumerate(clean):
            generator = attacker.subject.generator("grid", attacker.block, z, i)
            found.append(attacker.guess(release.noised(z * attacker.clip, generator))[0])
        return float((closeness(field, torch.stack(found), truth) - without).mean())

    return wins_at(gain)


ATTACK = Attack(
    name="noised-target",
    title="Solves for images that are generated and futures that are forecast: noise levels and labels from the "
    "modulation, noisy parts from the span, the target from the gradient, which is affine in it",
    statement="reconstruction",
    adversaries=("insider", "colluding-coordinator"),
    sees="one release of one block, of which all examples but one are known",
    needs="the model; fewer noisy tokens than the width of the block; one local step",
    cost="about a second a case",
    applies=_applies,
    run=_run,
)
