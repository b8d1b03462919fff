"""LM-MAP: all unknowns of a release at once, by maximum a posteriori; the strongest attack on real fields."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...blocks.categorical_denoiser import EmbeddedDenoiser
from ...blocks.examples import Examples
from ...blocks.taps import ContinuousTap
from .. import linear_span
from ..ceilings import Ceilings
from ..clip_model import ClipModel, unmodelled
from ..exhibits import Exhibit
from ..library import Library
from ..lm_map import LMMAP, Budget, Reconstruction
from ..metrics import matched
from ..prediction import information, wins_at
from ..release_model import ReleaseModel, step_rate
from ..releases import Release, clip_of, raw_gradient, released
from ..results import Result
from ..scoring import Attacked, blind_share, guessed
from ..starts import Starts
from ..subject import Subject
from ..unknowns import Layout, unsuited
from . import Attack

_CASES = {"raw": 8, "release": 16, "sum": 5}
_EASE = ((32, 3, 5), (64, 2, 3))
"""Up to so many unknowns so many times the cases, and the starts of each: a control that succeeds in a third of them
is told from none by their number, and a first start from closed forms decides most."""
_SUM = 2  # companies of which one example each is unknown in an opened sum
_FEW = 4  # public examples of the predicted noise at which the attack wins
_MOST_UNSTARTED = 128  # unknowns, where no closed form gives a start
_PLAUSIBLE = 150.0  # candidates left, from which on their mean is a better guess than any mode
_BUDGET = Budget(attempts=5, iterations=30, short=8, finalists=1, library=600)


@dataclass
class _Mounted:
    """The attack on one block: what every case of it shares."""

    subject: Subject
    block: int
    layout: Layout
    model: ReleaseModel
    library: Library | None

    @classmethod
    def on(cls, subject: Subject, block: int) -> _Mounted:
        training, mechanism = subject.plan.training, subject.mechanism(block)
        problem = subject.problem(block)
        layout = Layout(problem, subject.public, training.noise_draws * training.local_steps)
        model = ReleaseModel(
            layout, ClipModel.of(mechanism), steps=training.local_steps, rate=step_rate(mechanism)
        )
        generator = subject.generator("lm-map library", block)
        return cls(subject, block, layout, model, Library(model, subject.public, _BUDGET.library, generator))

    @property
    def more(self) -> int:
        """Times the cases."""
        return self._ease[0]

    def attempts(self, examples: int) -> int:
        """Starts of a case."""
        return self._ease[1] if examples == 1 else _BUDGET.attempts

    @property
    def _ease(self) -> tuple[int, int]:
        return next((each[1:] for each in _EASE if self.layout.size <= each[0]), (1, _BUDGET.attempts))

    def attack(self, release: Release, *names: object) -> Reconstruction:
        """What the attack finds of one release, which is all it sees."""
        generator = self.subject.generator("lm-map", self.block, *names)
        budget = Budget(
            attempts=self.attempts(release.examples), iterations=_BUDGET.iterations, short=_BUDGET.short,
            finalists=_BUDGET.finalists, stop=lambda: self.subject.clock.over,
        )  # fmt: skip
        if release.noise and self.library is not None:
            mean, plausible = self.library.average(release.vector, release.noise, release.examples)
            if plausible >= _PLAUSIBLE:
                return Reconstruction(mean, 0.0, 1.0, 0, 0)
        attack = LMMAP(self.model, release, budget)
        return attack.run(Starts(attack, release, generator, self.library))

    def raw(self) -> _Mounted:
        """The same for a gradient that is seen before clipping, from one step."""
        layout = Layout(self.layout.problem, self.subject.public, self.layout.problem.draws)
        model = ReleaseModel(layout, ClipModel(kind="unit"), steps=1, rate=0.0)
        return _Mounted(self.subject, self.block, layout, model, None)


def _applies(subject: Subject) -> str | None:
    (block,) = subject.blocks
    problem, training = subject.problem(block), subject.plan.training
    draws = training.noise_draws * training.local_steps
    if (why := unsuited(problem, draws)) is not None:
        return why
    if not isinstance(problem.model, EmbeddedDenoiser) and "image" in problem.by_name:
        return "an image that is the target has many draws that explain one release: see noised-target"
    layout = Layout(problem, subject.public, draws)
    if layout.size > _MOST_UNSTARTED and (why := _unstarted(layout)) is not None:
        return f"{layout.size} unknowns with nothing to start from, {_MOST_UNSTARTED} at most: {why}"
    return unmodelled(subject.mechanism(block))


def _unstarted(layout: Layout) -> str | None:
    """Why no closed form gives the fields or the noise draws a start, none where one does."""
    taps = [tap for tap in layout.problem.taps if isinstance(tap, ContinuousTap)]
    if not taps:
        return "no first layer reads a real field by a linear map of its own"
    if layout.draws > 1 and layout.basis is None:
        return f"{layout.draws} noise draws of {layout.draw - 1} values each"
    return linear_span.unsuited(taps[0], 1, layout.draws)


def _run(subject: Subject) -> Iterator[Result | Exhibit]:
    (block,) = subject.blocks
    mounted = _Mounted.on(subject, block)
    winning = _predicted(mounted)
    cohort = len(subject.cohort(block))
    tell = subject.clock.tell
    yield from _view(
        mounted.raw(), "insider", "one example's raw gradient", 1, _CASES["raw"], {}, protected=False,
        make=lambda examples, i, noisy: raw_gradient(subject, block, examples, "lm-map raw", i),
    )  # fmt: skip
    tell(0.25, f"LM-MAP, block {block}")
    yield from _view(
        mounted, "colluding-coordinator", "one company's release, all other examples known", 1, _CASES["release"],
        winning, protected=True,
        make=lambda examples, i, noisy: released(subject, block, examples, "lm-map", i, noisy=noisy),
    )  # fmt: skip
    tell(0.65, f"LM-MAP, block {block}")
    if cohort >= _SUM and mounted.layout.draws == 1:
        yield from _view(
            mounted, "coordinator", f"the opened sum, one example of each of {_SUM} companies unknown", _SUM,
            _CASES["sum"], {}, protected=True,
            make=lambda examples, i, noisy: released(
                subject, block, examples, "lm-map sum", i, noisy=noisy, companies=cohort
            ),
        )  # fmt: skip
    tell(1.0, f"LM-MAP, block {block}")


def _view(
    mounted: _Mounted,
    adversary: str,
    view: str,
    k: int,
    cases: int,
    winning: dict[str, float | None],
    *,
    protected: bool,
    make: Callable[[Examples, int, bool], Release],
) -> Iterator[Result | Exhibit]:
    """All results of one view; the clock ends it early, and what is missing is said."""
    subject, block, layout = mounted.subject, mounted.block, mounted.layout
    started = time.monotonic()
    cases *= mounted.more
    pool = subject.victims(cases * k, "lm-map", block, view)
    cases = min(cases, len(pool) // k)
    originals: list[dict[str, Tensor]] = []
    found: dict[str, list[dict[str, Tensor]]] = {"control": [], "released": []}
    iterations = 0
    for case in range(cases):
        if case and subject.clock.over:
            break
        examples = pool[torch.arange(case * k, (case + 1) * k)]
        truth = layout.problem.values_of(examples)
        originals.append(truth)
        for name, parts in found.items():
            if name == "control" and not protected:
                continue
            release = make(examples, case, name == "released")
            result = mounted.attack(release, view, name, case)
            iterations += result.iterations
            parts.append(_in_order(layout, result, truth))
    cut = f"the time ran out after {len(originals)} of {cases} cases" if subject.clock.over else ""
    both: dict[str, Any] = {
        "attack": ATTACK.name, "adversary": adversary, "view": view, "block": block, "protected": protected,
        "cut_short": cut, "seconds": time.monotonic() - started,
        "ceilings": Ceilings.of(subject, block, 1 if k == 1 else len(subject.cohort(block))),
        "budget": {
            "cases": len(originals), "unknowns": k * layout.size, "attempts": mounted.attempts(k),
            "iterations": iterations, "candidates": _BUDGET.library if mounted.library else 0,
        },
    }  # fmt: skip
    works = False
    for what in layout.fields:
        prior = layout.priors[what.name].mode
        truth_of = torch.cat([each[what.name] for each in originals])
        attacked = Attacked(
            of=what, originals=truth_of, released=torch.cat([p[what.name] for p in found["released"]]),
            control=torch.cat([p[what.name] for p in found["control"]]) if protected else None,
            prior=prior.expand_as(truth_of), clusters=np.repeat(np.arange(len(originals)), k),
            wins_at=winning.get(what.name), **both,
        )  # fmt: skip
        own = attacked.results()
        works = works or any(each.outcome != "inconclusive" for each in own)
        yield from own
        if what.what in ("image", "series") and protected:
            yield attacked.exhibit()
    public = layout.problem.values_of(subject.public)
    for what in layout.discrete:
        right = {
            name: torch.cat(
                [(p[what.name] == t[what.name]).reshape(-1) for p, t in zip(parts, originals, strict=False)]
            ).numpy()
            for name, parts in found.items()
            if parts
        }
        blind = _blind(public[what.name], torch.cat([t[what.name] for t in originals]))
        yield guessed(
            of=what, released=right["released"], control=right.get("control"), blind=blind, works=works, **both
        )  # fmt: skip


def _in_order(layout: Layout, found: Reconstruction, truth: dict[str, Tensor]) -> dict[str, Tensor]:
    """The guesses beside the originals that they are of: a sum has no order."""
    values = layout.values(found.guess)
    first = layout.fields[0].name
    flat = [v[first].reshape(len(v[first]), -1).numpy() for v in (values, truth)]
    order = torch.from_numpy(matched(flat[0], flat[1]))
    return {name: value[order] for name, value in (values | found.guess.discrete).items()}


def _blind(public: Tensor, truth: Tensor) -> float:
    """The share that the most frequent public value gets right, column by column."""
    columns = zip(public.reshape(len(public), -1).T, truth.reshape(len(truth), -1).T, strict=True)
    return float(np.mean([blind_share(known, own) for known, own in columns]))


def _predicted(mounted: _Mounted) -> dict[str, float | None]:
    """The noise multiplier from which on the attack is expected to lose, of each field; from public examples."""
    layout, subject = mounted.layout, mounted.subject
    if mounted.model.steps > 1:
        return {}
    generator = subject.generator("lm-map predicted", mounted.block)
    order = torch.randperm(len(subject.public), generator=generator)[:_FEW]
    found = [
        information(
            mounted.model,
            layout.guess(layout.problem.sample(layout.problem.values_of(subject.public[i[None]]), generator)),
        )
        for i in order
    ]
    clip = clip_of(subject.mechanism(mounted.block))
    return {what.name: wins_at(found, clip, what.name) for what in layout.fields}


ATTACK = Attack(
    name="lm-map",
    title="Looks for example and noise draws together: maximum a posteriori under the exact clipping and noise",
    statement="reconstruction",
    adversaries=("insider", "colluding-coordinator", "coordinator"),
    sees="one release of one block: of one unknown example, or of one at each of two companies",
    needs="the model; an example with real fields",
    cost="seconds a case",
    applies=_applies,
    run=_run,
    weight=3.0,
    open_ended=True,
)
