"""One set of weights for all companies, crafted so that single examples can be read off a whole batch's gradient.

Digests cannot exclude this: every company is sent the same model. What stands against it is the noise alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...blocks import Denoiser, Seeded
from ...blocks.taps import ContinuousTap
from ...client.exposure import owned_rows
from ..ceilings import Ceilings
from ..closeness import closeness, exact_from
from ..exhibits import Exhibit
from ..intervals import Estimate
from ..releases import Release, clip_of, released
from ..results import Result
from ..scoring import Attacked
from ..subject import Subject
from ..trap_weights import craft, unsuited
from ..winning import wins_at
from . import Attack

_RELEASES = 3
_ROWS = 4  # for each unknown example, so that most have a bin of their own
_GUESSES = 3  # for each unknown example; the guess without the release has as many
_WATCHED = 96  # examples of the company's own check
_VIEW = "one company's release from crafted weights, many examples of its batch unknown"


def _tap(subject: Subject, block: int) -> ContinuousTap | None:
    problem = subject.problem(block)
    found = (
        tap
        for tap in problem.taps
        if isinstance(tap, ContinuousTap) and problem.by_name[tap.field].side == "inputs"
    )
    return next(found, None)


def _applies(subject: Subject) -> str | None:
    (block,) = subject.blocks
    tap = _tap(subject, block)
    if tap is None:
        return "this block reads no real part of an example's input by a linear map of its own"
    if subject.plan.training.local_steps > 1:
        return "the traps move with the first of several local steps"
    return unsuited(subject.problem(block), tap)


def nearest(guesses: Tensor, truths: Tensor) -> Tensor:
    """For each of truths (N, ...) the closest of guesses (G, ...): scoring alone does this."""
    distances = torch.cdist(truths.flatten(1), guesses.flatten(1))
    return guesses[distances.argmin(1)]


def _run(subject: Subject) -> Iterator[Result | Exhibit]:
    (block,) = subject.blocks
    started = time.monotonic()
    problem, tap = subject.problem(block), _tap(subject, block)
    assert tap is not None
    field = problem.by_name[tap.field]
    public = problem.values_of(subject.public)[tap.field]
    traps = craft(problem, tap, subject.model, tap.cut(public))
    # The victim is sent the crafted model; all else is the run's own.
    victim = replace(subject, _models={"released": traps.model}, _problems={})
    expected = round(subject.plan.training.expected_batch_size)
    batch = max(1, min(expected, traps.rows // _ROWS, sum(len(part) for part in subject.private.values())))
    whole = traps.tokens == len(tap.embedding)

    def read(release: Release) -> Tensor:
        """What the coordinator makes of a release: it sees nothing else."""
        found = traps.read(problem, release.vector, _GUESSES * batch)
        return found if field.bounds is None else found.clamp(*field.bounds)

    names: dict[str, list[Tensor]] = {"originals": [], "released": [], "control": [], "prior": []}
    quiet: list[Release] = []
    clusters: list[int] = []
    for i in range(_RELEASES):
        if subject.clock.over:
            break
        examples = subject.victims(batch, ATTACK.name, block, i)
        truths = traps.carried(problem.values_of(examples)[tap.field])
        quiet.append(released(victim, block, examples, ATTACK.name, i, noisy=False))
        noisy = released(victim, block, examples, ATTACK.name, i, noisy=True)
        chosen = torch.randperm(len(public), generator=subject.generator(ATTACK.name, block, i))
        blind = traps.carried(public[chosen[: _GUESSES * batch]])
        names["originals"].append(truths)
        for name, guesses in (("released", read(noisy)), ("control", read(quiet[-1])), ("prior", blind)):
            names[name].append(nearest(guesses, truths))
        clusters += [i] * len(truths)
        subject.clock.tell(0.2 + 0.6 * (i + 1) / _RELEASES, f"crafted weights, block {block}")
    if not quiet:
        yield Result(
            attack=ATTACK.name, adversary="malicious-coordinator", view=_VIEW, statement="reconstruction",
            statistic=f"rebuilt exactly ({field.name})", unit="share", outcome="inconclusive", block=block,
            reason="the time ran out before the first release",
        )  # fmt: skip
        return
    first = names["originals"][0]
    by_chance = float((closeness(field, names["prior"][0], first) >= exact_from(field)).mean())

    def gain(multiplier: float) -> float:
        drawn = subject.generator(ATTACK.name, "noise", block, multiplier)
        noised = quiet[0].noised(multiplier * clip_of(subject.mechanism(block)), drawn)
        scores = closeness(field, nearest(read(noised), first), first)
        return float((scores >= exact_from(field)).mean()) - by_chance

    winning = wins_at(gain, least=0.05)
    shown = {
        name: traps.tap.join(torch.cat(parts)) if whole else torch.cat(parts) for name, parts in names.items()
    }
    attacked = Attacked(
        attack=ATTACK.name, adversary="malicious-coordinator", view=_VIEW, block=block, of=field,
        originals=shown["originals"], released=shown["released"], prior=shown["prior"],
        control=shown["control"], clusters=torch.tensor(clusters).numpy(), wins_at=winning,
        cut_short="" if len(quiet) == _RELEASES else f"{len(quiet)} of {_RELEASES} releases within the time",
        budget={
            "releases": len(quiet), "unknown examples": batch, "guesses": _GUESSES * batch,
            "parts read": f"{traps.tokens} of {len(tap.embedding)}",
        },
        seconds=time.monotonic() - started, guesses=_GUESSES * batch,
        ceilings=Ceilings.of(subject, block) if whole else None,
    )  # fmt: skip
    yield from attacked.results()
    yield _warned(subject, block, traps.model)
    if whole and field.what in ("image", "series"):
        yield attacked.exhibit()
    subject.clock.tell(1.0, f"crafted weights, block {block}")


def _warned(subject: Subject, block: int, crafted: Denoiser) -> Result:
    """Whether the check that a company makes before it trains sees the crafted weights; beside it the run's own.

    Of the company with most examples.
    """
    name = max(sorted(subject.private), key=lambda each: len(subject.private[each]))

    def owned(model: Denoiser) -> Estimate:
        found = owned_rows(
            copy.deepcopy(model), block, subject.private[name], subject.plan, examples=_WATCHED,
            source=Seeded(subject.generator(ATTACK.name, "watched", block)),
        )  # fmt: skip
        count = float(sum(map(len, found)))
        return Estimate(value=count, low=count, high=count, n=1, method="exact")

    value, honest = owned(crafted), owned(subject.model)
    seen = value.value > 0
    return Result(
        attack=ATTACK.name, adversary="malicious-coordinator", view="the weights that a company is sent",
        statement="conformance", statistic="parameter rows that one example owns", unit="number", block=block,
        outcome="held" if seen else "refuted", value=value, baseline=honest, budget={"examples": _WATCHED},
        reason="a company is warned in its log" if seen else "a company is not warned",
    )  # fmt: skip


ATTACK = Attack(
    name="crafted-weights",
    title="Sends all companies one model whose rows each catch few examples of a batch (trap weights)",
    statement="reconstruction",
    adversaries=("malicious-coordinator",),
    sees="one company's release of one round, from a model that the coordinator made up",
    needs="a block with a GELU layer that reads real inputs by a linear map; one local step",
    cost="some seconds a block",
    applies=_applies,
    run=_run,
    weight=0.3,
)
