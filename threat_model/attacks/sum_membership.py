"""Membership of a candidate in a sum: the likelihood ratio under the noise that the run's own mechanism adds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ...privacy.dp_sgd import DPSGD
from ...privacy.secure_step import SecureStep
from ..exhibits import Scores
from ..intervals import Array, Estimate, proportion
from ..membership.simulation import Candidates
from ..membership.sums import Hypotheses, Participation, gradients_of, log_ratio
from ..membership.verdict import COIN, WINS, Judged, judged, left_out
from ..releases import clip_of, deviation, released
from ..results import Result
from ..roc import LEAST_NON_MEMBERS, auc, gaussian_auc
from ..subject import Subject
from ..winning import wins_at
from . import Attack

CASES = 400
_LEAST = 100
_CONTROLS = 40
_TRUTHS, _DRAWS = 3, 8  # noise draws of a candidate: those of simulated releases, and the attacker's
_NULLS = 100  # simulated releases without each candidate, of which the threshold is made
_FALSE_ALARMS = 0.01
_SHARE = 0.7  # of the time, for the cases
CONTROL_NOISE = (
    0.02  # what the attacker takes a control's noise for, in clips: other draws are other gradients
)


@dataclass(frozen=True)
class Cases:
    """n candidates, members by a fair coin: products (n, m) of one company's release with the attacker's gradients.

    `without_noise`: the same of the first few in a release without noise.
    """

    member: npt.NDArray[np.bool_]
    products: Array
    without_noise: Array
    candidates: Candidates
    asked: int

    @property
    def cut_short(self) -> str:
        if len(self.member) >= _LEAST:
            return ""
        return f"the time ran out after {len(self.member)} of {self.asked} cases"

    @property
    def too_few(self) -> str:
        """Why no area can be told of all cases, or of those without noise: `auc` needs two members and two others."""
        controls = self.member[: len(self.without_noise)]
        if np.bincount(controls, minlength=2).min() >= 2:
            return ""
        return self.cut_short or f"too few cases to tell: {len(self.member)}"

    def split(self, scores: Array) -> tuple[Array, Array]:
        """Scores of members and of others."""
        member = self.member[: len(scores)]
        return scores[member], scores[~member]


def draw_cases(subject: Subject, block: int, count: int = CASES, *names: object) -> Cases:
    """Releases of the run's own mechanism, each with a candidate or without, all other examples subtracted."""
    problem, mechanism = subject.problem(block), subject.mechanism(block)
    pool = subject.victims(count, "sum membership", block, *names)
    count = len(pool)
    generator = subject.generator("sum membership", block, "draws", *names)
    # Half are members, in random order: a fair coin for each, but that both sides are there.
    member = (torch.randperm(count, generator=generator) < count / 2).numpy()
    grams, products, without = [], [], []
    for i in range(count):
        if subject.clock.spent > _SHARE * subject.clock.seconds:
            break
        candidate = pool[i : i + 1]
        g = gradients_of(problem, mechanism, candidate, _TRUTHS + _DRAWS, generator)
        g = g.double()
        inside = candidate if member[i] else candidate[:0]
        release = released(subject, block, inside, "membership", i, *names, noisy=True)
        products.append((g[_TRUTHS:] @ release.vector).numpy())
        if i < _CONTROLS:
            quiet = released(subject, block, inside, "membership", i, *names, noisy=False)
            without.append((g[_TRUTHS:] @ quiet.vector).numpy())
        grams.append((g @ g.T).numpy())
        if i % 20 == 0:
            subject.clock.tell(_SHARE * i / count, f"membership in a sum, block {block}")
    return Cases(
        member[: len(grams)],
        np.array(products),
        np.array(without),
        Candidates(np.array(grams), _TRUTHS),
        count,
    )


def strength(mechanism: DPSGD | SecureStep, companies: int = 1) -> float:
    """mu, the mechanism of a release being mu-Gaussian DP for an example that is taken every time."""
    if isinstance(mechanism, SecureStep):
        return float(mechanism.noise.l2 / (companies * mechanism.noise.variance_share) ** 0.5)
    most = Participation.of(mechanism).most
    return float((most / companies) ** 0.5 / mechanism.noise_multiplier)


def rounds_of(subject: Subject, block: int) -> int:
    """In how many rounds of the run so far a company has trained this block, at most."""
    return subject.trainings(block, subject.checkpoint.round)


def _applies(subject: Subject) -> str | None:
    if subject.plan.noise_multiplier == 0:
        return "the run adds no noise: a sum shows each example's gradient as it is"
    return None


def _run(subject: Subject) -> Iterator[Result | Scores]:
    (block,) = subject.blocks
    started = time.monotonic()
    cases = draw_cases(subject, block)
    if cases.too_few:
        yield Result(
            attack=ATTACK.name, adversary="colluding-coordinator", view=_RELEASE, statement="membership",
            statistic=_AREA, unit="auc", outcome="inconclusive", reason=cases.too_few, block=block,
        )  # fmt: skip
        return
    yield from _results(subject, block, cases, time.monotonic() - started)
    subject.clock.tell(1.0, f"membership in a sum, block {block}")


_RELEASE = "one company's release, all other examples known"
_SECRET = "one company's release, all other examples known but not the batch"
_SUM = "the opened sum, all other examples known"
_ROUNDS = "a company's releases of all rounds, all other examples known but not the batches"
_AREA = "members told from others (AUC)"


def _results(subject: Subject, block: int, cases: Cases, seconds: float) -> Iterator[Result | Scores]:
    mechanism = subject.mechanism(block)
    candidates, companies = cases.candidates, len(subject.cohort(block))
    own = Participation.of(mechanism)
    rng = np.random.default_rng(
        int(torch.randint(2**62, (), generator=subject.generator("sum membership", block)))
    )
    one, everyone = deviation(mechanism), deviation(mechanism, companies)
    unit = one / subject.plan.noise_multiplier  # deviation of a noise multiplier of 1
    certain = Hypotheses.of(own.certain, _DRAWS, rng)
    quiet = log_ratio(
        cases.without_noise,
        candidates.drawn[: len(cases.without_noise)],
        CONTROL_NOISE * clip_of(mechanism),
        certain,
    )
    control = auc(*cases.split(quiet))
    seed = int(rng.integers(2**62))

    def result(adversary: str, view: str, found: Judged, ceiling: float | None, wins: float | None) -> Result:
        return Result(
            attack=ATTACK.name, adversary=adversary, view=view, statement="membership", statistic=_AREA,
            unit="auc", outcome=found.outcome, reason=found.reason, block=block, value=found.value,
            control=control, baseline=COIN, ceiling=ceiling, wins_at=wins,
            budget={"cases": len(cases.member), "noise draws": _DRAWS}, seconds=round(seconds, 2),
        )  # fmt: skip

    def verdict(scores: Array, ceiling: float | None) -> Judged:
        return judged(*cases.split(scores), control=control, ceiling=ceiling, cut_short=cases.cut_short)

    def winning(companies: int, participation: Participation, rounds: int) -> float | None:
        spread = unit * companies**0.5
        return wins_at(lambda z: candidates.auc(z * spread, participation, rounds, seed) - 0.5, WINS)

    # One company's release: what the mechanism made.
    scores = log_ratio(cases.products, candidates.drawn, one, certain)
    ceiling = gaussian_auc(strength(mechanism))
    found = verdict(scores, ceiling)
    yield result("colluding-coordinator", _RELEASE, found, ceiling, winning(1, own.certain, 1))
    nulls = _without_candidates(cases, one, own.certain, rng)
    yield _at_few_false_alarms(cases, scores, nulls, found, block)
    members, others = cases.split(scores)
    yield Scores(
        attack=ATTACK.name, view=_RELEASE, block=block, members=members, others=others, simulated=nulls
    )  # fmt: skip

    # The sum of the cohort's: the others' noise on top.
    more = (everyone**2 - one**2) ** 0.5
    products = cases.products + candidates.noise(more, rng)[0, :, _TRUTHS:]
    summed = log_ratio(products, candidates.drawn, everyone, certain)
    members, others = cases.split(summed)
    yield Scores(attack=ATTACK.name, view=_SUM, block=block, members=members, others=others)
    ceiling = gaussian_auc(strength(mechanism, companies))
    yield result("coordinator", _SUM, verdict(summed, ceiling), ceiling, winning(companies, own.certain, 1))

    # The batch is secret. A member that it left out leaves what a non-member leaves, and the ratio rises with that of
    # a certain batch: of one step the area follows.
    if own.rate < 1 and own.most == 1:
        bound = gaussian_auc(strength(mechanism), own.rate)
        yield result("colluding-coordinator", _SECRET, left_out(found, own.rate), bound, None)
    rounds = rounds_of(subject, block)
    if rounds and not subject.clock.over:
        scores = candidates.scores(cases.member, one, own, rounds, rng)  # of simulated noise
        yield result("colluding-coordinator", _ROUNDS, verdict(scores, None), None, winning(1, own, rounds))
        members, others = cases.split(scores)
        yield Scores(attack=ATTACK.name, view=_ROUNDS, block=block, members=members, others=others)


def _without_candidates(
    cases: Cases, noise: float, participation: Participation, rng: np.random.Generator
) -> Array:
    """Scores of simulated releases without the candidates, of which thresholds are made."""
    nobody = np.zeros(len(cases.member), dtype=bool)
    drawn = [cases.candidates.scores(nobody, noise, participation, 1, rng) for _ in range(_NULLS)]
    return np.concatenate(drawn)


def _at_few_false_alarms(cases: Cases, scores: Array, nulls: Array, found: Judged, block: int) -> Result:
    """Members found at 1% false alarms: the threshold is that of simulated releases without the candidates."""
    n = len(cases.member)
    threshold = float(np.quantile(nulls, 1 - _FALSE_ALARMS))
    members, others = cases.split(scores)
    common = {
        "attack": ATTACK.name, "adversary": "colluding-coordinator", "view": _RELEASE, "block": block,
        "statement": "membership", "statistic": "members found at 1% false alarms", "unit": "share",
        "budget": {"cases": n, "noise draws": _DRAWS},
    }  # fmt: skip
    if len(members) == 0:
        return Result.model_validate(
            common | {"outcome": "inconclusive", "reason": "no member among the cases"}
        )
    least = LEAST_NON_MEMBERS[0.001]
    said = [found.reason, f"{int((others > threshold).sum())} of {len(others)} others passed the threshold"]
    if len(others) < least:
        said.append(f"nothing is said at 0.1%, which takes {least:,} non-members")
    baseline = Estimate(value=_FALSE_ALARMS, low=_FALSE_ALARMS, high=_FALSE_ALARMS, n=1, method="exact")
    return Result.model_validate(
        common
        | {
            "outcome": found.outcome, "reason": "; ".join(each for each in said if each), "baseline": baseline,
            "value": proportion(int((members > threshold).sum()), len(members)),
        }
    )  # fmt: skip


ATTACK = Attack(
    name="sum-membership",
    title="Asks whether a known example is in a sum, by the likelihood ratio under the run's own noise",
    statement="membership",
    adversaries=("colluding-coordinator", "coordinator"),
    sees="one release or all of a block, of which all examples but the candidate are known",
    needs="the model and the candidate; not its noise draws, nor whether its batch took it",
    cost="some 10 ms a case; 400 cases",
    applies=_applies,
    run=_run,
    open_ended=True,
)
