"""The strongest attack on one release of any family's real fields, under the release's exact likelihood."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ...blocks.denoiser import GaussianDenoiser
from ...blocks.noise import LogNormalNoise
from ...blocks.taps import ContinuousTap, Field
from ..block_problem import BlockProblem
from ..exhibits import Exhibit
from ..likelihood import Clip, unmodelled
from ..linear_span import solve, unsuited
from ..lm_map import LMMAP, Budget, Law, Reconstruction
from ..prior import GaussianPrior
from ..problem import Values
from ..releases import Release, released
from ..results import Result
from ..scoring import Attacked, guessed
from ..subject import Subject
from ..unmixing import noise_levels
from . import Attack

_CASES = 4
_BUDGET = Budget()
_WIDEST = 4096  # values of a field above which a Gaussian prior does not fit in memory
_DISCRETE_TRIED = 64  # combinations of labels and codes that are tried at a start


@dataclass
class _Attacker:
    """What is known of the model and of public data."""

    problem: BlockProblem
    clip: Clip
    priors: dict[str, GaussianPrior]
    nuisance: dict[str, Law]
    public: Values

    @classmethod
    def of(cls, subject: Subject, block: int) -> _Attacker:
        problem = subject.problem(block)
        public = problem.values_of(subject.public)
        priors = {
            f.name: GaussianPrior.fit(public[f.name], f.bounds)
            for f in problem.fields if f.continuous and not f.nuisance
        }  # fmt: skip
        law = problem.model.partition.law
        assert isinstance(law, LogNormalNoise)
        level = Law(
            torch.tensor([law.P_mean], dtype=torch.float64),
            torch.tensor([law.P_std**-2.0], dtype=torch.float64),
            problem.by_name["level"].bounds,
        )
        n = math.prod(problem.by_name["noise"].shape)
        noise = Law(torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64), None)
        clip = Clip.of(subject.mechanism(block))
        return cls(problem, clip, priors, {"level": level, "noise": noise}, public)

    def attack(
        self, release: Release, clip: Clip, generator: torch.Generator, subject: Subject
    ) -> Reconstruction:
        search = LMMAP(self.problem, release, clip, self.priors, self.nuisance)
        starts = [self._start(release, clip, i, generator) for i in range(_BUDGET.attempts)]
        return search.run(starts, _BUDGET, subject.clock)

    def _start(self, release: Release, clip: Clip, attempt: int, generator: torch.Generator) -> Values:
        """Fields from the span where it applies, else the prior's mode; levels from the modulation's row space; a
        random draw, since at zero draws of one example cannot be told apart."""
        problem, draws = self.problem, self.problem.draws
        values: Values = {name: prior.mode[None] for name, prior in self.priors.items()}
        for tap in problem.taps:
            if isinstance(tap, ContinuousTap) and unsuited(tap, 1, draws) is None:
                values[tap.field] = solve(problem, tap, release, self.priors[tap.field], draws).values[None]
        low, high = problem.by_name["level"].bounds or (0.0, 0.0)
        levels = torch.full((1, draws), (low + high) / 2, dtype=torch.float64)
        modulation = problem.tensors(release.vector).get("layers.0.modulation.weight")
        if modulation is not None and "label" not in self._conditioned() and attempt + 1 < _BUDGET.attempts:
            found, _ = noise_levels(problem, modulation, draws)
            levels[0, : len(found)] = found
        values["level"] = levels
        shape = (1, draws, *problem.by_name["noise"].shape)
        values["noise"] = torch.randn(shape, generator=generator, dtype=torch.float64)
        return self._with_discrete(release, clip, values, attempt, generator)

    def _conditioned(self) -> set[str]:
        """Fields that move the modulation as well as the noise level does: a generator's class."""
        return {"label"} if self.problem.by_name.get("image") and self._label_is_input() else set()

    def _label_is_input(self) -> bool:
        label = self.problem.by_name.get("label")
        return label is not None and label.side == "inputs"

    def _with_discrete(
        self, release: Release, clip: Clip, values: Values, attempt: int, generator: torch.Generator
    ) -> Values:
        """With the labels and codes whose gradient points most as the release does; later attempts take the next."""
        fields = [f for f in self.problem.fields if not f.continuous]
        if not fields:
            return values
        combinations: list[dict[str, Tensor]] = []
        counts = [f.classes or 1 for f in fields for _ in range(math.prod(f.shape))]
        if math.prod(counts) <= _DISCRETE_TRIED:
            for chosen in product(*(range(n) for n in counts)):
                combinations.append(_cut(fields, torch.tensor(chosen)))
        else:
            rows = torch.randint(len(self.public[fields[0].name]), (_DISCRETE_TRIED,), generator=generator)
            combinations += [{f.name: self.public[f.name][i] for f in fields} for i in rows]
        many = {name: v.expand(len(combinations), *v.shape[1:]) for name, v in values.items()}
        many |= {f.name: torch.stack([each[f.name] for each in combinations]) for f in fields}
        with torch.no_grad():
            g = clip(self.problem, self.problem.gradient(many))
        distance = (g - release.vector).square().sum(1)
        rank = min(attempt % 2, len(combinations) - 1)
        best = int(distance.argsort()[rank])
        return {name: v[best : best + 1] for name, v in many.items()}


def _cut(fields: list[Field], chosen: Tensor) -> dict[str, Tensor]:
    sizes = [math.prod(f.shape) for f in fields]
    return {f.name: part.view(f.shape) for f, part in zip(fields, chosen.split(sizes), strict=True)}


def _applies(subject: Subject) -> str | None:
    (block,) = subject.blocks
    problem = subject.problem(block)
    if not isinstance(problem.model, GaussianDenoiser) or "tokens" in problem.by_name:
        return "tokens are no real values: see token-span"
    widest = max(math.prod(f.shape) for f in problem.fields if f.continuous and not f.nuisance)
    if widest > _WIDEST:
        return f"a field of {widest:,} values: a Gaussian prior over it does not fit in memory"
    return unmodelled(subject.mechanism(block))


def _run(subject: Subject) -> Iterator[Result | Exhibit]:
    (block,) = subject.blocks
    problem, attacker = subject.problem(block), _Attacker.of(subject, block)
    victims = subject.victims(_CASES, "lm-map", block)
    truth = problem.values_of(victims)
    companies = len(subject.cohort(block))
    views = (
        ("control", "colluding-coordinator", "one company's release, all other examples known"),
        ("released", "colluding-coordinator", "one company's release, all other examples known"),
    )
    found: dict[str, list[Reconstruction]] = {name: [] for name, _, _ in views}
    started = time.monotonic()
    cut_short = ""
    for case in range(len(victims)):
        for step, (name, _, _) in enumerate(views):
            victim = victims[case : case + 1]
            release = released(subject, block, victim, "lm-map", case, noisy=name == "released")
            generator = subject.generator("lm-map", block, case, name)
            found[name].append(attacker.attack(release, attacker.clip, generator, subject))
            subject.clock.tell((case + (step + 1) / 2) / len(victims), f"LM-MAP, block {block}")
        if subject.clock.over and case + 1 < len(victims):
            cut_short = f"the time ran out after {case + 1} of {len(victims)} cases"
            break
    if any(each.cut_short for name in found for each in found[name]) and not cut_short:
        cut_short = "the time ran out in the last case"
    done = len(found["released"])
    fields = [f for f in problem.fields if f.continuous and not f.nuisance]
    for field in fields:
        prior = attacker.priors[field.name]
        originals = truth[field.name][:done]
        attacked = Attacked(
            attack=ATTACK.name, adversary="colluding-coordinator", view=views[1][2], block=block, of=field,
            originals=originals, released=torch.cat([each.values[field.name] for each in found["released"]]),
            control=torch.cat([each.values[field.name] for each in found["control"]]),
            prior=prior.mode.expand_as(originals), cut_short=cut_short,
            budget={"cases": done, "search": _BUDGET.words(), "companies": companies},
            seconds=time.monotonic() - started,
        )  # fmt: skip
        yield from attacked.results()
        if field.what in ("image", "series"):
            yield attacked.exhibit()
    for field in (f for f in problem.fields if f.what == "label"):
        common = int(torch.bincount(attacker.public[field.name].flatten()).argmax())
        right = {
            name: torch.cat([each.values[field.name] for each in found[name]]).eq(truth[field.name][:done]).numpy()
            for name in found
        }  # fmt: skip
        yield guessed(
            attack=ATTACK.name, adversary="colluding-coordinator", view=views[1][2], block=block, of=field,
            released=right["released"], control=right["control"], cut_short=cut_short,
            blind=float((truth[field.name][:done] == common).double().mean()),
        )  # fmt: skip


ATTACK = Attack(
    name="lm-map",
    title="Levenberg-Marquardt on fields, noise levels and noise draws at once, under the release's exact likelihood",
    statement="reconstruction",
    adversaries=("colluding-coordinator",),
    sees="one release of one block, of which all examples but one are known",
    needs="the model; public examples for a prior; one local step",
    cost="seconds a case",
    applies=_applies,
    run=_run,
    weight=4.0,
)
