"""Texts from the row space of the gradients of keys and values: which token values, and in which order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...blocks import Draw
from ...blocks.examples import Examples
from ..exhibits import MOST_TEXTS, Condition, Texts
from ..intervals import Estimate, mean, proportion
from ..releases import Release, clip_of, raw_gradient, released
from ..results import FAILED_CONTROL, Result
from ..subject import Subject
from ..tokens.presence import Sets, exact, recall
from ..tokens.texts import PRACTICE, Make, Practised, TextAttacker, text_taps
from ..winning import wins_at
from . import Attack

_CASES = 20
_ORDERED = 8  # texts whose order is searched for
_FEW = 8  # texts of the search for the noise at which the attack wins
_FEW_ORDERED = 3
_VALUES, _SETS, _TEXTS = "token values found", "sets of token values exact", "texts in order"
_WIDTH = 64  # prefixes kept where the rank makes a hard check
_NARROW = 8  # and under noise
_BETTER = 0.03  # of the values, above frequency alone, counts as winning
_SURE = 0.999  # of many views and blocks one gains something by chance
_ENOUGH = 0.95  # of all values: found rather than partly found
_WHOLE = 0.5  # share of whole sets or texts, without noise, from which on these are counted


def _applies(subject: Subject) -> str | None:
    training = subject.plan.training
    if not any(text_taps(subject.problem(block)) for block in subject.blocks):
        return "no block of this model reads tokens through a table that stays as it is"
    if training.interface and training.local_steps > 1:
        return "the table of tokens moves from step to step (interface), so that tokens have no one span"
    return None


def _maker(
    subject: Subject, block: int, side: str, *, noisy: bool, companies: int = 1, raw: bool = False
) -> Make:
    """Releases of private or public texts (`side`); the same draws in every view."""

    def make(text: Examples, case: int, drawn: list[Draw]) -> Release:
        if raw:
            return raw_gradient(subject, block, text, "tokens", side, case, drawn=drawn)
        return released(
            subject, block, text, "tokens", side, case, noisy=noisy, companies=companies, drawn=drawn
        )

    return make


def _kept(make: Make) -> Make:
    """The same releases, each made once."""
    known: dict[int, tuple[Release, list[Draw]]] = {}

    def once(text: Examples, case: int, drawn: list[Draw]) -> Release:
        if case not in known:
            own: list[Draw] = []
            known[case] = make(text, case, own), own
        drawn.extend(known[case][1])
        return known[case][0]

    return once


@dataclass
class _Scores:
    """Of one condition, text by text: shares of values found, whether the set was exact, whether the order was."""

    recalls: list[float] = field(default_factory=list)
    exact: list[bool] = field(default_factory=list)
    ordered: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class _Seen:
    """Releases of private texts, each with what the block read of it."""

    releases: list[Release]
    sets: Sets
    texts: list[Tensor]

    @classmethod
    def of(cls, attacker: TextAttacker, make: Make, victims: Examples) -> _Seen:
        releases, sets = attacker.experiments(make, victims)
        kept = [i for i, each in enumerate(sets) if each]  # a masked text may show nothing
        return cls([releases[i] for i in kept], [sets[i] for i in kept], [victims.inputs[i] for i in kept])


def _run(subject: Subject) -> Iterator[Result | Texts]:
    for block in subject.blocks:
        if text_taps(subject.problem(block)):
            yield from _Experiment(subject, block).results()


class _Experiment:
    """All views of one block, on the same private texts."""

    def __init__(self, subject: Subject, block: int) -> None:
        self.subject, self.block = subject, block
        self.attacker = TextAttacker(
            subject.problem(block), subject.public, subject.generator("tokens", block)
        )
        self.victims = subject.victims(_CASES, "token-span", block)

    def results(self) -> Iterator[Result | Texts]:
        clean = _Seen.of(
            self.attacker, _maker(self.subject, self.block, "private", noisy=False), self.victims
        )
        if not clean.releases:
            return
        self.no_order = self.attacker.why_no_order(clean.releases)
        self.rank = self.attacker.rank(clean.releases, self.attacker.taps[0])
        by = self.attacker.practise(
            _maker(self.subject, self.block, "public", noisy=False), order=self.no_order is None
        )
        control = self._scored(by, clean, _WIDTH)
        self.read_clean = [by.log_odds(release) for release in clean.releases[:MOST_TEXTS]]
        self._tell(0.3)
        winning = self._wins_at(clean)
        self._tell(0.5)
        cohort = len(self.subject.cohort(self.block))
        yield from self._view("insider", "one example's raw gradient", None, {}, raw=True, noisy=False)
        self._tell(0.6)
        yield from self._view(
            "colluding-coordinator",
            "one company's release, all other examples known",
            control,
            winning,
            noisy=True,
        )
        self._tell(0.8)
        yield from self._view(
            "coordinator", "the opened sum, all other examples known", control, winning,
            noisy=True, companies=cohort,
        )  # fmt: skip

    def _tell(self, share: float) -> None:
        self.subject.clock.tell(share, f"token span, block {self.block}")

    def _scored(self, by: Practised, seen: _Seen, width: int) -> _Scores:
        found = _Scores()
        for release, true, text in zip(seen.releases, seen.sets, seen.texts, strict=True):
            odds = by.log_odds(release)
            found.recalls.append(recall(odds, true))
            found.exact.append(exact(odds, true))
            more = len(found.ordered) < _ORDERED and not self.subject.clock.over
            if self.no_order is None and more:
                found.ordered.append(torch.equal(by.order(release, width).tokens, text[:-1]))
        return found

    def _wins_at(self, clean: _Seen) -> dict[str, float | None]:
        """By statistic, the noise multiplier up to which a company's release tells more than is known without it."""
        few = replace(clean, releases=clean.releases[:_FEW], sets=clean.sets[:_FEW], texts=clean.texts[:_FEW])
        clip = clip_of(self.subject.mechanism(self.block))
        public = _kept(_maker(self.subject, self.block, "public", noisy=False))
        blind = self._prior_alone(few.sets)

        def at(z: float, order: bool) -> tuple[Practised, list[Release]]:
            generator = self.subject.generator("tokens", "grid", self.block, z)

            def noised(text: Examples, case: int, drawn: list[Draw]) -> Release:
                return public(text, case, drawn).noised(z * clip, generator)

            by = self.attacker.practise(noised, order=order)
            return by, [release.noised(z * clip, generator) for release in few.releases]

        def more_values(z: float) -> float:
            by, seen = at(z, False)
            shares = [recall(by.log_odds(r), true) for r, true in zip(seen, few.sets, strict=True)]
            return float(np.mean(shares) - np.mean(blind.recalls))

        def more_exact(z: float) -> float:
            by, seen = at(z, False)
            right = [exact(by.log_odds(r), true) for r, true in zip(seen, few.sets, strict=True)]
            return float(np.mean(right) - np.mean(blind.exact))

        def more_ordered(z: float) -> float:
            by, seen = at(z, True)
            pairs = list(zip(seen, few.texts, strict=True))[:_FEW_ORDERED]
            return float(np.mean([torch.equal(by.order(r, _NARROW).tokens, t[:-1]) for r, t in pairs]))

        found: dict[str, float | None] = {}
        searches = [(_VALUES, more_values, _BETTER), (_SETS, more_exact, 0.1)]
        if self.no_order is None:
            searches.append((_TEXTS, more_ordered, 0.2))
        for statistic, gain, least in searches:
            if not self.subject.clock.over:
                found[statistic] = wins_at(gain, least=least)
        return found

    def _prior_alone(self, sets: Sets) -> _Scores:
        prior = self.attacker.prior
        return _Scores([recall(prior, true) for true in sets], [exact(prior, true) for true in sets])

    def _view(
        self,
        adversary: str,
        view: str,
        control: _Scores | None,
        winning: dict[str, float | None],
        *,
        noisy: bool,
        companies: int = 1,
        raw: bool = False,
    ) -> Iterator[Result | Texts]:
        started = time.monotonic()
        public, private = (
            _maker(self.subject, self.block, side, noisy=noisy, companies=companies, raw=raw)
            for side in ("public", "private")
        )
        by = self.attacker.practise(public, order=self.no_order is None)
        seen = _Seen.of(self.attacker, private, self.victims)
        if not seen.releases:
            return
        scores, blind = self._scored(by, seen, _NARROW if noisy else _WIDTH), self._prior_alone(seen.sets)
        about = {
            "attack": ATTACK.name, "adversary": adversary, "view": view, "block": self.block,
            "statement": "reconstruction", "protected": noisy, "unit": "share",
            "seconds": round(time.monotonic() - started, 2),
            "budget": {"texts": len(seen.sets), "practice texts": PRACTICE, "rank": self.rank},
        }  # fmt: skip
        yield self._values(about | {"wins_at": winning.get(_VALUES)}, scores, control, blind)
        if control is not None:
            yield self._shown(view, seen, [by.log_odds(release) for release in seen.releases[:MOST_TEXTS]])
        yield _counted(
            about | {"statistic": _SETS, "wins_at": winning.get(_SETS)}, scores.exact,
            None if control is None else control.exact,
            proportion(sum(blind.exact), len(blind.exact)),
        )  # fmt: skip
        about = about | {"statistic": _TEXTS}
        wanted = min(_ORDERED, len(seen.sets))
        if self.no_order is not None:
            yield Result.model_validate(about | {"outcome": "not applicable", "reason": self.no_order})
        elif not scores.ordered:
            reason = f"the time ran out before the first of {wanted} texts"
            yield Result.model_validate(about | {"outcome": "inconclusive", "reason": reason})
        else:
            done = len(scores.ordered)
            cut = "" if done == wanted else f"the time ran out after {done} of {wanted} texts"
            yield _counted(
                about | {"wins_at": winning.get(_TEXTS)}, scores.ordered,
                None if control is None else control.ordered,
                proportion(0, done), cut,
            )  # fmt: skip

    def _shown(self, view: str, seen: _Seen, released: list[Tensor]) -> Texts:
        """The first texts, with the tokens whose values were held likelier than not to be there."""
        texts = torch.stack(seen.texts[:MOST_TEXTS])
        prior = [self.attacker.prior] * len(texts)
        read: dict[Condition, list[Tensor]] = {
            "released": released, "control": self.read_clean[: len(texts)], "prior": prior,
        }  # fmt: skip
        arrays: dict[Condition, npt.NDArray[np.int32]] = {"original": texts.numpy().astype(np.int32)}
        for condition, odds in read.items():
            if len(odds) == len(texts):
                there = torch.stack([o[text] > 0 for o, text in zip(odds, texts, strict=True)])
                arrays[condition] = torch.where(there, texts, -1).numpy().astype(np.int32)
        return Texts(attack=ATTACK.name, view=view, block=self.block, arrays=arrays)

    @staticmethod
    def _values(about: dict[str, object], scores: _Scores, control: _Scores | None, blind: _Scores) -> Result:
        values, base = np.array(scores.recalls), np.array(blind.recalls)
        outcome, reason = "not found", ""
        if mean(values - base, level=_SURE).low > 0:
            outcome = "found" if values.mean() >= _ENOUGH else "partly found"
        elif control is not None and np.mean(control.recalls) < base.mean() + _BETTER:
            outcome = "inconclusive"
            reason = f"{FAILED_CONTROL}: without noise no more values are found than by frequency"
        return Result.model_validate(
            about
            | {
                "statistic": _VALUES, "outcome": outcome, "reason": reason, "value": mean(values),
                "worst_decile": float(np.quantile(values, 0.9)), "baseline": mean(base),
                "control": None if control is None else mean(np.array(control.recalls)),
            }
        )  # fmt: skip


def _counted(
    about: dict[str, object], found: list[bool], control: list[bool] | None, blind: Estimate, cut: str = ""
) -> Result:
    outcome, reason = "not found", cut
    own = proportion(sum(control), len(control)) if control else None
    if proportion(sum(found), len(found), level=_SURE).low > blind.value:
        outcome = "found"
    elif cut:
        outcome = "inconclusive"
    elif own is not None and own.low <= blind.value:
        outcome, reason = "inconclusive", f"{FAILED_CONTROL}: without noise no more are exact than blindly"
        if (
            own.high < _WHOLE
        ):  # no want of texts; whether the attack works is told by the values that it finds
            outcome = "not applicable"
            reason = f"without noise too whole ones are not exact: {round(own.value * own.n)} of {own.n}"
    value = proportion(sum(found), len(found))
    return Result.model_validate(
        about | {"outcome": outcome, "reason": reason, "value": value, "control": own, "baseline": blind}
    )


ATTACK = Attack(
    name="token-span",
    title="Tests every token value, then every prefix, against the row space of a gradient of keys and values",
    statement="reconstruction",
    adversaries=("insider", "colluding-coordinator", "coordinator"),
    sees="one release of one block, of which all examples but one text are known",
    needs="the model and public texts; for the order fewer inputs than the width of the block, and a causal model",
    cost="milliseconds a text for its values, up to seconds for their order",
    applies=_applies,
    run=_run,
)
