"""The strongest attack on one release: all that is unknown of one or two examples, under its exact likelihood."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...blocks.categorical_denoiser import EmbeddedDenoiser
from ...blocks.denoiser import GaussianDenoiser
from ...blocks.noise import LogNormalNoise
from ...privacy.dp_sgd import DPSGD
from ..clip_model import ClipModel
from ..exhibits import Exhibit
from ..library import Library
from ..lm_map import LMMAP, Budget
from ..metrics import matched
from ..prediction import information, wins_at
from ..release_model import ReleaseModel
from ..releases import Release, clip_of, released
from ..results import Result
from ..scoring import Attacked
from ..starts import Starts
from ..subject import Subject
from ..unknowns import Layout
from . import Attack

_SUMS = {1: 4, 2: 2}  # unknown examples of a sum -> sums
_WIDEST = 1024  # values of a field: its prior and derivative are dense


@dataclass(frozen=True)
class _Attacker:
    """What is known of the model, of public data and of the mechanism."""

    subject: Subject
    block: int
    model: ReleaseModel
    budget: Budget
    library: Library

    @classmethod
    def of(cls, subject: Subject, block: int) -> _Attacker:
        mechanism, training = subject.mechanism(block), subject.plan.training
        layout = Layout(subject.problem(block), subject.public, training.noise_draws * training.local_steps)
        rate = (
            mechanism.learning_rate / mechanism.expected_batch_size if isinstance(mechanism, DPSGD) else 0.0
        )
        model = ReleaseModel(layout, ClipModel.of(mechanism), steps=training.local_steps, rate=rate)
        budget = Budget(
            attempts=4, iterations=25, short=6, finalists=1, library=256, stop=lambda: subject.clock.over
        )
        library = Library(model, subject.public, budget.library, subject.generator("library", block))
        return cls(subject, block, model, budget, library)

    def attack(self, release: Release, *names: object) -> tuple[dict[str, Tensor], float]:
        """The unknown examples by field, and the residual."""
        generator = self.subject.generator("lm-map", self.block, *names)
        search = LMMAP(self.model, release, self.budget, generator)
        found = search.run(Starts(search, release, generator, self.library if release.noise else None))
        return self.model.layout.values(found.guess), found.residual


def _applies(subject: Subject) -> str | None:
    (block,) = subject.blocks
    problem = subject.problem(block)
    if not isinstance(problem.model, GaussianDenoiser) or "tokens" in problem.by_name:
        return "tokens are no real values: see token-span"
    if not isinstance(problem.model.partition.law, LogNormalNoise):
        return "the law of noise levels is not log-normal"
    if not isinstance(problem.model, EmbeddedDenoiser):
        return "a target of real values has many draws that explain one release: see noised-target"
    widest = max(torch.Size(f.shape).numel() for f in problem.fields if f.continuous and not f.nuisance)
    if widest > _WIDEST:
        return f"a field of {widest:,} values, and its derivative is made whole: at most {_WIDEST:,}"
    draws = subject.plan.training.noise_draws * subject.plan.training.local_steps
    if draws > 1:
        return f"{draws} noise draws of an example: starts under noise are made for one"
    if subject.plan.training.interface:
        return "the likelihood is that of blocks whose embeddings stay as they are (interface)"
    mechanism = subject.mechanism(block)
    if isinstance(mechanism, DPSGD) and (mechanism.noise_bands > 1 or mechanism.quantile_clip is not None):
        return "the likelihood is that of white noise and of a clip that stays"
    return None


def _run(subject: Subject) -> Iterator[Result | Exhibit]:
    (block,) = subject.blocks
    attacker = _Attacker.of(subject, block)
    for done, (k, cases) in enumerate(_SUMS.items(), start=1):
        yield from _attacked(attacker, k, cases)
        subject.clock.tell(done / len(_SUMS), f"LM-MAP, block {block}")


def _attacked(attacker: _Attacker, k: int, cases: int) -> Iterator[Result | Exhibit]:
    subject, block = attacker.subject, attacker.block
    problem, started = subject.problem(block), time.monotonic()
    fields = attacker.model.layout.fields
    found: dict[str, list[dict[str, Tensor]]] = {"control": [], "released": []}
    truths: list[dict[str, Tensor]] = []
    cut_short = ""
    for case in range(cases):
        victims = subject.victims(k, "lm-map", block, k, case)
        truth = problem.values_of(victims)
        for name, into in found.items():
            release = released(subject, block, victims, "lm-map", k, case, noisy=name == "released")
            values, _ = attacker.attack(release, k, case, name)
            order = torch.from_numpy(matched(values[fields[0].name].numpy(), truth[fields[0].name].numpy()))
            into.append({field: value[order] for field, value in values.items()})
        truths.append(truth)
        if subject.clock.over:
            cut_short = f"the time ran out after {case + 1} of {cases} sums"
            break
        subject.clock.tell((case + 1) / cases / 2, f"LM-MAP, block {block}, {k} unknown")
    view = f"one company's release, {k} of its examples unknown"
    clusters = np.repeat(np.arange(len(truths)), k)
    for field in fields:
        prior = attacker.model.layout.priors[field.name]
        originals = torch.cat([truth[field.name] for truth in truths])
        attacked = Attacked(
            attack=ATTACK.name, adversary="colluding-coordinator", view=view, block=block, of=field,
            originals=originals, released=torch.cat([each[field.name] for each in found["released"]]),
            control=torch.cat([each[field.name] for each in found["control"]]),
            prior=prior.mode.expand_as(originals), clusters=clusters, cut_short=cut_short,
            wins_at=_wins_at(attacker, truths, field.name) if k == 1 else None,
            budget={"sums": len(truths), "starts": attacker.budget.attempts, "steps": attacker.budget.iterations},
            seconds=time.monotonic() - started,
        )  # fmt: skip
        yield from attacked.results()
        if field.what in ("image", "series"):
            yield attacked.exhibit()


def _wins_at(attacker: _Attacker, truths: list[dict[str, Tensor]], field: str) -> float | None:
    """By the local prediction, which needs no search."""
    model, subject = attacker.model, attacker.subject
    generator = subject.generator("prediction", attacker.block)
    known = []
    for truth in truths:
        drawn = model.problem.sample(truth, generator)
        known.append(information(model, model.layout.guess(drawn)))
    return wins_at(known, clip_of(subject.mechanism(attacker.block)), field)


ATTACK = Attack(
    name="lm-map",
    title="Levenberg-Marquardt on fields, labels, noise levels and draws at once, under the exact likelihood",
    statement="reconstruction",
    adversaries=("colluding-coordinator",),
    sees="one release of one block, of which all examples but one or two are known",
    needs="the model, and public examples for a prior",
    cost="up to some seconds a case",
    applies=_applies,
    run=_run,
    weight=3.0,
)
