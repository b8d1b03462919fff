"""Sums of several unknown examples, un-mixed draw by draw; labels too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...blocks.examples import Examples
from ...blocks.taps import ContinuousTap
from ..ceilings import Ceilings
from ..closeness import closeness
from ..exhibits import Exhibit
from ..metrics import matched
from ..prior import GaussianPrior
from ..releases import Release, clip_of, released
from ..results import Result
from ..scoring import Attacked, blind_share, guessed
from ..subject import Subject
from ..unmixing import unmix, unsuited
from ..winning import wins_at
from . import Attack

_SUMS = {1: 20, 2: 10, 4: 6}  # unknown examples of a sum -> sums
_WHOLE = 1e-2  # residual of a solution above which the attacker itself knows that it failed
_FEW = 3  # sums of the search for the noise at which the attack wins


@dataclass
class _Guesses:
    """What one condition gave, in the order of the originals."""

    values: list[Tensor]
    labels: list[npt.NDArray[np.bool_]]


def _tap(subject: Subject, block: int) -> ContinuousTap | None:
    return next((tap for tap in subject.problem(block).taps if isinstance(tap, ContinuousTap)), None)


def _applies(subject: Subject) -> str | None:
    (block,) = subject.blocks
    tap = _tap(subject, block)
    if tap is None:
        return "no block of this model reads a real part of an example by a linear map of its own"
    if subject.plan.training.local_steps > 1:
        return "the modulation moves from step to step, so that no one curve of noise levels fits the sum"
    return unsuited(subject.problem(block), tap, 1)


def _run(subject: Subject) -> Iterator[Result | Exhibit]:
    (block,) = subject.blocks
    problem, tap = subject.problem(block), _tap(subject, block)
    assert tap is not None
    field = problem.by_name[tap.field]
    prior = GaussianPrior.fit(problem.values_of(subject.public)[tap.field], field.bounds)
    sums = {k: n for k, n in _SUMS.items() if unsuited(problem, tap, k) is None}
    for done, (k, cases) in enumerate(sums.items(), start=1):
        started = time.monotonic()
        victims = [subject.victims(k, "unmixed", block, k, case) for case in range(cases)]
        originals = [problem.values_of(each)[tap.field] for each in victims]
        conditions = {name: _Guesses([], []) for name in ("control", "released")}
        clean: list[Release] = []
        for case, examples in enumerate(victims):
            for name, guesses in conditions.items():
                release = released(subject, block, examples, "unmixed", k, case, noisy=name == "released")
                if name == "control":
                    clean.append(release)
                labels = examples.targets if "label" in problem.by_name else None
                values, right = _guess(subject, block, tap, release, prior, originals[case], labels)
                guesses.values.append(values)
                guesses.labels.append(right)
        whole = torch.cat(originals)
        ceilings = Ceilings.of(subject, block)
        view = f"one company's release, {k} of its examples unknown"
        attacked = Attacked(
            attack=ATTACK.name, adversary="colluding-coordinator", view=view, block=block, of=field,
            originals=whole, released=torch.cat(conditions["released"].values),
            control=torch.cat(conditions["control"].values), prior=prior.mode.expand_as(whole),
            clusters=np.repeat(np.arange(cases), k), wins_at=_wins_at(subject, block, tap, prior, clean, originals),
            budget={"sums": cases, "examples": k}, seconds=time.monotonic() - started,
            guesses=k, ceilings=ceilings,
        )  # fmt: skip
        yield from attacked.results()
        yield attacked.exhibit()
        if "label" in problem.by_name:
            yield guessed(
                attack=ATTACK.name, adversary="colluding-coordinator", view=view, block=block,
                of=problem.by_name["label"], released=np.concatenate(conditions["released"].labels),
                control=np.concatenate(conditions["control"].labels),
                blind=blind_share(subject.public.targets, _labels(victims)),
                budget={"sums": cases, "examples": k}, ceilings=ceilings,
            )  # fmt: skip
        subject.clock.tell(done / len(sums), f"unmixed span, block {block}")


def _guess(
    subject: Subject,
    block: int,
    tap: ContinuousTap,
    release: Release,
    prior: GaussianPrior,
    originals: Tensor,
    labels: Tensor | None,
) -> tuple[Tensor, npt.NDArray[np.bool_]]:
    """What comes back of one sum, and which of the labels do: what did not come out is the prior's mode, and the most
    frequent public label. A sum has no order, so the guesses are matched."""
    found = [
        each for each in unmix(subject.problem(block), tap, release, prior, labels=labels is not None)
        if float(each.solution.residual.max()) < _WHOLE
    ]  # fmt: skip
    k = len(originals)
    missing = max(k - len(found), 0)
    values = torch.stack([each.solution.values for each in found[:k]] + [prior.mode] * missing)
    order = matched(values.numpy(), originals.numpy())
    right = np.zeros(0, dtype=np.bool_)
    if labels is not None:
        common = _common(subject)
        named = [common if each.label is None else each.label for each in found[:k]] + [common] * missing
        right = np.array([named[i] == int(y) for i, y in zip(order, labels, strict=True)])
    return values[torch.from_numpy(order)], right


def _common(subject: Subject) -> int:
    """The most frequent public label."""
    return int(torch.bincount(subject.public.targets.long()).argmax())


def _labels(victims: list[Examples]) -> Tensor:
    return torch.cat([each.targets for each in victims])


def _wins_at(
    subject: Subject,
    block: int,
    tap: ContinuousTap,
    prior: GaussianPrior,
    clean: list[Release],
    originals: list[Tensor],
) -> float | None:
    """The noise multiplier up to which sums are un-mixed visibly."""
    field, clip = subject.problem(block).by_name[tap.field], clip_of(subject.mechanism(block))
    few = list(zip(clean, originals, strict=True))[:_FEW]

    def gain(z: float) -> float:
        gains = []
        for case, (release, truth) in enumerate(few):
            noised = release.noised(z * clip, subject.generator("grid", block, z, case))
            found, _ = _guess(subject, block, tap, noised, prior, truth, None)
            without = closeness(field, prior.mode.expand_as(truth), truth)
            gains.append((closeness(field, found, truth) - without).mean())
        return float(np.mean(gains))

    return wins_at(gain)


ATTACK = Attack(
    name="unmixed-span",
    title="Un-mixes a sum of several unknown examples by their noise levels, then solves for each; reads labels off",
    statement="reconstruction",
    adversaries=("colluding-coordinator",),
    sees="one release of one block, of which all examples but one, two or four are known",
    needs="the model; a block of one layer with one noisy token, as many heads as tokens",
    cost="a tenth of a second a sum",
    applies=_applies,
    run=_run,
)
