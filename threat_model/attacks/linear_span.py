"""Images, series and rows of numbers from the row space of the first layer's keys and values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...blocks.taps import ContinuousTap
from ..ceilings import Ceilings
from ..closeness import closeness
from ..exhibits import Exhibit
from ..linear_span import unsuited
from ..prior import GaussianPrior
from ..releases import Release, clip_of, raw_gradient, released
from ..results import Result
from ..scoring import Attacked
from ..subject import Subject
from ..unmixing import solve_one
from ..winning import wins_at
from . import Attack

_CASES = 40
_FEW = 6  # cases of the search for the noise at which the attack wins


def _taps(subject: Subject, block: int) -> list[ContinuousTap]:
    return [tap for tap in subject.problem(block).taps if isinstance(tap, ContinuousTap)]


def _draws(subject: Subject) -> int:
    """Noise draws of one example in a release, over all steps."""
    training = subject.plan.training
    return training.noise_draws * training.local_steps


def _unsuited(subject: Subject, block: int, tap: ContinuousTap) -> str | None:
    if subject.plan.training.interface and subject.plan.training.local_steps > 1:
        return (
            "the embedding of the inputs moves from step to step (interface), so that tokens have no one span"
        )
    return unsuited(tap, 1, _draws(subject))


def _applies(subject: Subject) -> str | None:
    reasons = [
        reason
        for block in subject.blocks
        for tap in _taps(subject, block)
        for reason in [_unsuited(subject, block, tap)]
    ]
    if not any(_taps(subject, block) for block in subject.blocks):
        return "no block of this model reads a real part of an example by a linear map of its own"
    usable = sum(len(_taps(subject, block)) for block in subject.blocks) - sum(r is not None for r in reasons)
    return None if usable else next(r for r in reasons if r is not None)


def _run(subject: Subject) -> Iterator[Result | Exhibit]:
    for block in subject.blocks:
        for tap in _taps(subject, block):
            why = _unsuited(subject, block, tap)
            if why is None:
                yield from _attacked(subject, block, tap)


def _attacked(subject: Subject, block: int, tap: ContinuousTap) -> Iterator[Result | Exhibit]:
    problem, draws = subject.problem(block), _draws(subject)
    field = problem.by_name[tap.field]
    prior = GaussianPrior.fit(problem.values_of(subject.public)[tap.field], field.bounds)
    victims = subject.victims(_CASES, "linear-span", block)
    originals = problem.values_of(victims)[tap.field]

    def rebuilt(make: Callable[[int], Release], cases: int) -> Tensor:
        found = [solve_one(problem, tap, make(i), prior, draws).values for i in range(cases)]
        return torch.stack(found)

    def control(i: int) -> Release:
        return released(subject, block, victims[i : i + 1], "span", i, noisy=False)

    winning = _wins_at(subject, block, originals, rebuilt, control, prior)
    subject.clock.tell(0.3, f"linear span, block {block}")
    views: list[tuple[str, str, bool, Callable[[int], Release]]] = [
        (
            "insider", "one example's raw gradient", False,
            lambda i: raw_gradient(subject, block, victims[i : i + 1], "span", i),
        ),
        (
            "colluding-coordinator", "one company's release, all other examples known", True,
            lambda i: released(subject, block, victims[i : i + 1], "span", i, noisy=True),
        ),
        (
            "coordinator", "the opened sum, all other examples known", True,
            lambda i: released(
                subject, block, victims[i : i + 1], "span", i, noisy=True, companies=len(subject.cohort(block))
            ),
        ),
    ]  # fmt: skip
    without_noise = rebuilt(control, len(victims))
    for done, (adversary, view, protected, make) in enumerate(views, start=1):
        started = time.monotonic()
        found = rebuilt(make, len(victims))
        attacked = Attacked(
            attack=ATTACK.name, adversary=adversary, view=view, block=block, of=field, originals=originals,
            released=found, control=without_noise if protected else None, prior=prior.mode.expand_as(originals),
            protected=protected, wins_at=winning if protected else None,
            ceilings=Ceilings.of(subject, block, len(subject.cohort(block)) if adversary == "coordinator" else 1),
            budget={"cases": len(victims), "solutions": 1}, seconds=time.monotonic() - started,
        )  # fmt: skip
        yield from attacked.results()
        if field.what in ("image", "series") and adversary == "colluding-coordinator":
            yield attacked.exhibit()
        subject.clock.tell(0.3 + 0.7 * done / len(views), f"linear span, block {block}")


def _wins_at(
    subject: Subject,
    block: int,
    originals: Tensor,
    rebuilt: Callable[[Callable[[int], Release], int], Tensor],
    control: Callable[[int], Release],
    prior: GaussianPrior,
) -> float | None:
    """The noise multiplier up to which a company's release is rebuilt visibly."""
    field = next(f for f in subject.problem(block).fields if f.shape == tuple(prior.shape) and f.continuous)
    clip, cases = clip_of(subject.mechanism(block)), min(_FEW, len(originals))
    releases = [control(i) for i in range(cases)]
    without = closeness(field, prior.mode.expand_as(originals[:cases]), originals[:cases])

    def gain(z: float) -> float:
        noised = [
            release.noised(z * clip, subject.generator("grid", block, z, i))
            for i, release in enumerate(releases)
        ]
        found = rebuilt(noised.__getitem__, cases)
        return float((closeness(field, found, originals[:cases]) - without).mean())

    return wins_at(gain)


ATTACK = Attack(
    name="linear-span",
    title="Solves for images, series or numbers whose tokens span the rows of the first layer's gradient",
    statement="reconstruction",
    adversaries=("insider", "colluding-coordinator", "coordinator"),
    sees="one release of one block, of which all examples but one are known",
    needs="the model; fewer tokens than the width of the block",
    cost="milliseconds a case",
    applies=_applies,
    run=_run,
    weight=0.5,
)
