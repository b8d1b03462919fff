"""Does a company hold any example of a class? A property of a company, which no epsilon covers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ...blocks.examples import Examples
from ..intervals import Array
from ..label_counts import Classes, noise, summed
from ..membership.sums import Participation
from ..membership.verdict import COIN, WINS, judged, powerless
from ..releases import deviation
from ..results import Result
from ..roc import auc
from ..subject import Subject
from ..winning import wins_at
from . import Attack
from .sum_membership import rounds_of

_EACH = 40  # public examples a class
_LEAST = 16  # pairs of a company and a class that it holds
_MOST = 400  # examples of a company that are in its sums
_WHY = "a company as a whole has no epsilon"
_ONE = "one company's release"
_ROUNDS = "a company's releases of all rounds"


def _applies(subject: Subject) -> str | None:
    (block,) = subject.blocks
    problem = subject.problem(block)
    label = problem.by_name.get("label")
    if label is None or label.classes is None:
        return "examples of this model have no class"
    if len(problem.values_of(subject.public)["label"].unique()) < 2:
        return "public data has fewer than two classes, so that no direction tells one"
    pairs = sum(len(problem.values_of(own)["label"].unique()) for own in subject.private.values())
    if pairs < _LEAST:
        return (
            f"{pairs} pairs of a company and a class that it holds, of at least {_LEAST} that tell anything"
        )
    return None


@dataclass(frozen=True)
class _Worlds:
    """Companies as sums see them: `companies` has products (n, C) of each one's examples, and labels (n,)."""

    classes: Classes
    companies: list[tuple[Array, Array]]

    def scores(
        self, participation: Participation, rounds: int, spread: float, seed: int
    ) -> tuple[Array, Array]:
        """Scores where the class is there, and where its examples were taken out."""
        rng = np.random.default_rng(seed)
        there: list[float] = []
        gone: list[float] = []
        for products, labels in self.companies:
            for column, label in enumerate(self.classes.present):
                if not (labels == label).any():
                    continue
                for kept, found in ((labels >= 0, there), (labels != label, gone)):
                    total = summed(products[kept], participation, rounds, rng)
                    total = total + noise(self.classes.gram, spread, rng)
                    found.append(float(self.classes.scores(total, spread)[column]))
        return np.array(there), np.array(gone)


def _worlds(subject: Subject, block: int) -> _Worlds:
    problem, mechanism = subject.problem(block), subject.mechanism(block)
    generator = subject.generator("label presence", block)
    classes = Classes.fit(problem, mechanism, subject.public, _EACH, generator)
    companies = []
    for i, (name, own) in enumerate(subject.private.items()):
        # Where time is short, fewer companies: each is whole.
        if i and subject.clock.spent * (i + 1) / i > 0.9 * subject.clock.seconds:
            break
        chosen: Examples = own[torch.randperm(len(own), generator=subject.generator(name, block))[:_MOST]]
        companies.append(
            (
                classes.products(chosen, generator),
                problem.values_of(chosen)["label"].numpy().astype(np.float64),
            )
        )
        subject.clock.tell(0.9 * (i + 1) / len(subject.private), f"labels of companies, block {block}")
    return _Worlds(classes, companies)


def _run(subject: Subject) -> Iterator[Result]:
    (block,) = subject.blocks
    started = time.monotonic()
    worlds = _worlds(subject, block)
    mechanism = subject.mechanism(block)
    own, seed = Participation.of(mechanism), int(subject.generator("worlds", block).initial_seed())
    one = deviation(mechanism)
    unit = one / subject.plan.noise_multiplier if one else 0.0
    done = len(worlds.companies)
    cut = "" if done > 1 else f"the time ran out after {done} of {len(subject.private)} companies"
    for view, rounds in ((_ONE, 1), (_ROUNDS, rounds_of(subject, block))):
        if rounds < 1 or (view == _ROUNDS and rounds == 1):
            continue
        there, gone = worlds.scores(own, rounds, one * rounds**0.5, seed)
        if len(there) < 2:
            yield _result(
                block,
                view,
                outcome="inconclusive",
                reason="too few classes at companies to tell",
                started=started,
            )
            continue
        control = auc(*worlds.scores(own, rounds, 0.0, seed))
        found = judged(there, gone, control=control, ceiling=None, cut_short=cut)
        found = powerless(found, control, "the other classes hide one")

        def gain(z: float, rounds: int = rounds) -> float:
            return auc(*worlds.scores(own, rounds, z * unit * rounds**0.5, seed)).value - 0.5

        yield _result(
            block, view, outcome=found.outcome, reason="; ".join(each for each in (found.reason, _WHY) if each),
            value=found.value, control=control, baseline=COIN, started=started,
            wins_at=wins_at(gain, WINS) if unit else None,
            budget={"companies": done, "classes": len(worlds.classes.present), "rounds": rounds},
        )  # fmt: skip
    subject.clock.tell(1.0, f"labels of companies, block {block}")


def _result(block: int, view: str, started: float, **values: object) -> Result:
    fixed: dict[str, object] = {
        "attack": ATTACK.name, "adversary": "colluding-coordinator", "view": view, "statement": "property",
        "statistic": "classes that a company holds told from others (AUC)", "unit": "auc", "block": block,
        "protected": True,  # a run shows it, though no plan promises anything of a company as a whole
        "seconds": round(time.monotonic() - started, 2),
    }  # fmt: skip
    return Result.model_validate(fixed | values)


ATTACK = Attack(
    name="label-presence",
    title="Counts a company's examples of each class, along the mean gradients of public examples",
    statement="property",
    adversaries=("colluding-coordinator",),
    sees="one company's release of a block, or those of all rounds in one state",
    needs="the model, and public examples of the classes",
    cost="a millisecond for each example of a company",
    applies=_applies,
    run=_run,
    weight=0.5,
)
