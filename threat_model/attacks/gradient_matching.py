"""Gradient matching on raw gradients: the usual reference, beside which closed forms and LM-MAP stand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from ...blocks.taps import Field
from ..gradient_matching import Matching, match
from ..prior import GaussianPrior
from ..releases import raw_gradient
from ..results import Result
from ..scoring import Attacked
from ..subject import Subject
from . import Attack

_CASES = 2
_ITERATIONS = {"adam": 100, "lbfgs": 60}
_WORDS = {"adam": "Adam", "lbfgs": "L-BFGS", "l2": "L2", "cosine": "cosine"}
_MOST = 4096  # unknowns


def _field(subject: Subject, block: int) -> Field | None:
    """What is looked for: the first real field."""
    found = [f for f in subject.problem(block).fields if f.continuous and not f.nuisance]
    return found[0] if found else None


def _applies(subject: Subject) -> str | None:
    (block,) = subject.blocks
    problem = subject.problem(block)
    field = _field(subject, block)
    if field is None:
        return "tokens are no matter of continuous search"
    if any(f.what == "codes" for f in problem.fields):
        return "columns of codes are no matter of continuous search"
    size = torch.Size(field.shape).numel()
    return f"{size:,} unknowns of an example, {_MOST:,} at most" if size > _MOST else None


def _run(subject: Subject) -> Iterator[Result]:
    (block,) = subject.blocks
    problem, field = subject.problem(block), _field(subject, block)
    assert field is not None
    prior = GaussianPrior.fit(problem.values_of(subject.public)[field.name], field.bounds)
    victims = subject.victims(_CASES, ATTACK.name, block)
    originals = problem.values_of(victims)[field.name]
    ways = list(product(("l2", "cosine"), ("adam", "lbfgs")))
    for done, (distance, optimizer) in enumerate(ways, start=1):
        started = time.monotonic()
        matching = Matching(
            optimizer=optimizer, distance=distance, attempts=1, iterations=_ITERATIONS[optimizer]  # type: ignore[arg-type]
        )  # fmt: skip
        found: list[Tensor] = []
        for i in range(len(victims)):
            if subject.clock.over:
                break
            release = raw_gradient(subject, block, victims[i : i + 1], ATTACK.name, i)
            generator = subject.generator(ATTACK.name, block, distance, optimizer, i)
            found.append(
                match(problem, release, prior, matching, generator, field=field.name).values[field.name]
            )
        if not found:
            return
        own = originals[: len(found)]
        yield from Attacked(
            attack=ATTACK.name, adversary="insider", block=block, of=field, originals=own, released=torch.cat(found),
            view=f"one example's raw gradient, by {_WORDS[distance]} and {_WORDS[optimizer]}",
            prior=prior.mode.expand_as(own), protected=False, seconds=time.monotonic() - started,
            budget={"cases": len(found), "search": matching.words()},
        ).results()  # fmt: skip
        subject.clock.tell(done / len(ways), f"gradient matching, block {block}")


ATTACK = Attack(
    name="gradient-matching",
    title="Changes an imagined example until its gradient is the released one (L2 and cosine, Adam and L-BFGS)",
    statement="reconstruction",
    adversaries=("insider",),
    sees="one example's raw gradient",
    needs="the model; an example that is a real field and a label",
    cost="some seconds a block; a reference, weaker than the closed forms",
    applies=_applies,
    run=_run,
    weight=0.4,
)
