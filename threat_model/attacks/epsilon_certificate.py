"""A lower bound on epsilon for each block and company, from the run's own releases with canaries in them.

Three claims are tested, each with the trade-off function of exactly what is released: one release of which every
canary is known to be part (the local guarantee, without amplification), the run's releases of a block with batches
drawn as accounted, and independent releases with one canary each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import InputError, PrivacyError
from ...privacy.accounting import largest
from ..ceilings import releases_of
from ..epsilon.certificate import (
    Certificate,
    one_run,
    refutable,
    refutable_repeatedly,
    register,
    register_threshold,
    repeated,
)
from ..epsilon.planted import LEVEL, Planted
from ..intervals import Estimate
from ..results import Outcome, Result
from ..subject import Subject
from ..tradeoff import Claim
from . import Attack

NAME = "epsilon-certificate"
_LEAST_VALUES = 100
_REPEATED = 500
_MOST_RELEASES = 200
_ONE = "one release, every canary known to be in it"
_ALL = "the run's releases, sampled as accounted"
_REPEATEDLY = "independent releases, one canary known to be in half of them"
Array = npt.NDArray[np.float64]
Coins = npt.NDArray[np.bool_]


def _applies(subject: Subject) -> str | None:
    if not subject.plan.private:
        return "the plan promises no noise (noise_multiplier = 0), so there is no epsilon to be refuted"
    size = Planted(subject, subject.blocks[0], NAME).size
    if size < _LEAST_VALUES:
        return f"a block has {size} values, room for as many orthogonal canaries; {_LEAST_VALUES} are needed"
    return None


def _run(subject: Subject) -> Iterator[Result]:
    for block in subject.blocks:
        test = _Test(subject, block)
        try:
            yield from test.one_release()
            yield from test.independent_releases()
            yield from test.all_releases()
        except (InputError, PrivacyError) as error:
            yield test.without(f"the step was refused: {error}", "inconclusive", "own step")


@dataclass(frozen=True)
class _View:
    """One claim under test. `control`: what is found without noise, `null`: from noise alone. `hopeless`: no outcome
    at all can refute it. `reason`: what the clock cut short."""

    text: str
    claim: Claim
    control: Certificate
    null: Certificate
    budget: dict[str, float | int | str]
    hopeless: bool
    reason: str = ""


@dataclass(frozen=True)
class _Sum:
    """Scores (m,) summed over releases of a company with the canaries `inside`; `coins`: what is guessed."""

    company: str
    kind: str
    inside: Coins
    coins: Coins
    scores: Array
    noise: float = 1.0


class _Test:
    """The certificates of one block. Every test has the same part of the level of the whole audit."""

    def __init__(self, subject: Subject, block: int) -> None:
        self.subject, self.block, self.clock = subject, block, subject.clock
        self.planted = Planted(subject, block, NAME)
        # Two a company and one of the block, whichever blocks are audited now.
        self.level = LEVEL / (subject.plan.model.blocks * (2 * len(subject.private) + 1))
        self.started = time.monotonic()

    def one_release(self) -> Iterator[Result]:
        yield from self._guesses(_ONE, lambda releases: self.planted.known, 1, sampled=False)

    def all_releases(self) -> Iterator[Result]:
        """As many of the run's releases as there is time for, and as canaries can refute the account of: the claim is
        that of just these."""
        whole = min(releases_of(self.subject, self.block), _MOST_RELEASES)

        def fits(releases: int) -> bool:
            claim = self.planted.sampled(releases).tradeoff()
            return refutable(claim, self.planted.canaries.count, self.level)

        most = whole if fits(whole) else max(1, largest(fits, whole))
        yield from self._guesses(_ALL, self.planted.sampled, most, sampled=True)

    def _guesses(
        self, text: str, claim_of: Callable[[int], Claim], most: int, *, sampled: bool
    ) -> Iterator[Result]:
        """The one-run bound for every company, from the sum of its releases."""
        planted, m = self.planted, self.planted.canaries.count
        if self.clock.over:
            yield self.without("the time ran out before its first release", "inconclusive", text)
            return
        first, coins = planted.companies[0], planted.coins(m, text, "control")
        runs = [
            _Sum(first, "control", coins, coins, np.zeros(m), noise=0.0),
            _Sum(first, "null", np.zeros(m, dtype=np.bool_), coins, np.zeros(m)),
        ]
        for company in planted.companies:
            inside = planted.coins(m, text, company)
            runs.append(_Sum(company, "audited", inside, inside, np.zeros(m)))
        releases, stop = 0, 0.7 * self.clock.left
        while releases < most and (releases == 0 or self.clock.left > stop):
            for run in runs:
                run.scores[:] += planted.scores(
                    run.company, run.inside, text, run.kind, releases, sampled=sampled, noise=run.noise
                )
            releases += 1
            self._tell(text, releases / most)
        # Nothing seen so far has a part in this: only the number of releases, which the clock decided.
        claim = claim_of(releases)
        registered = register(claim.tradeoff(), planted.law(releases, sampled=sampled), m, self.level)
        control, null, *found = (
            one_run(claim, registered, registered.right(run.scores, run.coins), self.level) for run in runs
        )
        view = _View(
            text, claim, control, null,
            budget={"canaries": m, "guesses": registered.guesses, "releases": releases},
            hopeless=not refutable(claim.tradeoff(), m, self.level),
            reason="" if releases == most else f"{releases} of {most} releases in the time that there was",
        )  # fmt: skip
        for company, certificate in zip(planted.companies, found, strict=True):
            yield self._result(view, certificate, company)

    def independent_releases(self) -> Iterator[Result]:
        """The companies by turns."""
        planted, claim = self.planted, self.planted.known
        threshold = register_threshold(claim.tradeoff(), planted.law(), _REPEATED, self.level)
        coins = planted.coins(_REPEATED, _REPEATEDLY)
        stop = 0.5 * self.clock.left
        found: list[float] = []
        for number in range(_REPEATED):
            company = planted.companies[number % len(planted.companies)]
            found.append(self._one_canary(company, number, bool(coins[number])))
            self._tell(_REPEATEDLY, number / _REPEATED)
            if self.clock.left < stop or self.clock.over:
                break
        passed, part = np.array(found) > threshold, coins[: len(found)]
        unused = planted.coins(int((~part).sum()), "null")
        bare = np.array([self._one_canary(planted.companies[0], -1, True, noise=0.0)]) > threshold

        def certificate(in_: Coins, out: Coins) -> Certificate:
            return repeated(claim, int(in_.sum()), len(in_), int(out.sum()), len(out), self.level)

        view = _View(
            _REPEATEDLY, claim,
            control=certificate(np.repeat(bare, part.sum()), np.repeat(threshold < 0, (~part).sum())),
            null=certificate(passed[~part][unused], passed[~part][~unused]),
            budget={"releases": len(found), "threshold": round(threshold, 3)},
            hopeless=not refutable_repeatedly(claim.tradeoff(), _REPEATED, self.level),
            reason="" if len(found) == _REPEATED else f"{len(found)} of {_REPEATED} releases in the time there was",
        )  # fmt: skip
        yield self._result(view, certificate(passed[part], passed[~part]), None)

    def _one_canary(self, company: str, number: int, inside: bool, noise: float = 1.0) -> float:
        """The score of canary `number` in a release of its own."""
        m = self.planted.canaries.count
        coins = np.zeros(m, dtype=np.bool_)
        coins[number % m] = inside
        return float(self.planted.scores(company, coins, _REPEATEDLY, number, noise=noise)[number % m])

    def _tell(self, text: str, share: float) -> None:
        """Three tests of a block alike."""
        done = (_ONE, _REPEATEDLY, _ALL).index(text) + share
        self.clock.tell(done / 3, f"block {self.block}, {text}")

    def _result(self, view: _View, found: Certificate, company: str | None) -> Result:
        who = f"block {self.block}" if company is None else f"{company}, block {self.block}"
        claimed = f"the claimed {found.claimed:.4g}"
        if found.refuted:
            what = f"{claimed} is refuted, epsilon is at least {found.epsilon:.4g} ({view.text})"
            return self._of(view, found, company, "refuted", f"{who}: {what}")
        if view.null.epsilon > 0:
            why = f"noise alone is taken for an epsilon of {view.null.epsilon:.3g}"
            return self._of(view, found, company, "inconclusive", why)
        if not view.control.refuted:
            # Of independent releases the cases are these, else canaries.
            what = "releases" if company is None else "canaries"
            shown = f"without noise they show {view.control.epsilon:.3g} at most"
            why = f"{found.cases:,} {what} cannot refute {claimed}: {shown}"
            # More time would change nothing where the clock has cut nothing short.
            outcome: Outcome = "inconclusive" if view.reason and not view.hopeless else "not applicable"
            return self.without(why, outcome, view.text, company)
        return self._of(view, found, company, "held", view.reason)

    def _of(
        self, view: _View, found: Certificate, company: str | None, outcome: Outcome, reason: str
    ) -> Result:
        return Result(
            attack=NAME, adversary="auditor", view=view.text, statement="certificate", statistic=self._statistic,
            unit="epsilon", outcome=outcome, reason=reason, block=self.block, company=company,
            value=_at_least(found), control=_at_least(view.control), baseline=_at_least(view.null),
            ceiling=found.claimed, budget=view.budget, seconds=self._seconds(),
        )  # fmt: skip

    def without(self, reason: str, outcome: Outcome, view: str, company: str | None = None) -> Result:
        return Result(
            attack=NAME, adversary="auditor", view=view, statement="certificate", statistic=self._statistic,
            unit="epsilon", outcome=outcome, reason=reason, block=self.block, company=company,
            seconds=self._seconds(),
        )  # fmt: skip

    @property
    def _statistic(self) -> str:
        return f"epsilon at delta={self.subject.plan.delta:g}, at least"

    def _seconds(self) -> float:
        """Since the last result."""
        spent, self.started = time.monotonic() - self.started, time.monotonic()
        return round(spent, 2)


def _at_least(found: Certificate) -> Estimate:
    return Estimate(
        value=found.epsilon, low=found.epsilon, high=float("inf"), n=found.cases, method="exact",
        level=1 - found.level,
    )  # fmt: skip


ATTACK = Attack(
    name=NAME,
    title="Canaries in the run's own releases: a lower bound on epsilon for every mechanism of the claimed trade-off",
    statement="certificate",
    adversaries=("auditor",),
    sees="a company's releases with made-up gradients in them, and the coin that put each in or left it out",
    needs="a plan with noise, and as many values in a block as canaries",
    cost="about a second a company and block, and a tenth of one for each release of the run",
    applies=_applies,
    run=_run,
    weight=2.0,
    open_ended=True,
)
