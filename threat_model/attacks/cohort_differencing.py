"""Two opened sums whose cohorts differ by one company: does their difference show more than that company's release?

A coordinator may claim in one round that a company dropped out. It opens the sum of n companies and, another time,
that of the other n - 1; it may show both rounds the same block. What differs is the victim's update, but every
company trains with new noise in every round, so that the difference carries the noise of 2n - 1 releases. One session
opens one set of survivors, which they sign, so both sums are charged.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from scipy import stats

from ...privacy.secure_aggregation import lowest_threshold
from ..intervals import LEVEL, Estimate
from ..membership.sums import Hypotheses, Participation, log_ratio
from ..membership.verdict import COIN, SURE, judged
from ..releases import clip_of, deviation, released
from ..results import Outcome, Result
from ..roc import auc, gaussian_auc
from ..subject import Subject
from . import Attack
from .sum_membership import CONTROL_NOISE, draw_cases, strength

_CASES = 200
_VIEW = "the difference of two opened sums, of which one lacks the victim, all other examples known"


def _smallest(subject: Subject, companies: int) -> int:
    """The fewest companies of which a sum of this cohort is opened."""
    plan = subject.plan
    return max(plan.threshold(companies) or 0, lowest_threshold(companies, plan.colluders), 2)


def _applies(subject: Subject) -> str | None:
    (block,) = subject.blocks
    companies = len(subject.cohort(block))
    least = _smallest(subject, companies)
    if companies - 1 < least:
        return f"of {companies} companies no sum of {companies - 1} is opened: it takes {least}"
    if subject.plan.noise_multiplier == 0:
        return "the run adds no noise: a difference shows a company's update as it is"
    return None


def variance_ratio(difference: torch.Tensor, predicted: float, level: float = LEVEL) -> Estimate:
    """Variance of noise (P,) over the predicted one, with its exact interval (chi-squared, P degrees of freedom)."""
    n = len(difference)
    squares = float(difference.double().square().sum()) / predicted**2
    low, high = (squares / float(stats.chi2.ppf(q, n)) for q in ((1 + level) / 2, (1 - level) / 2))
    return Estimate(value=squares / n, low=low, high=high, n=n, method="exact", level=level)


def _noise(subject: Subject, block: int, companies: int) -> torch.Tensor:
    """The difference of two sums without data: what is left is noise, made by the mechanism company by company."""
    nothing = subject.public[:0]
    total = None
    for sum_, count, sign in (("all", companies, 1.0), ("without the victim", companies - 1, -1.0)):
        for company in range(count):
            made = released(subject, block, nothing, "differencing", sum_, company, noisy=True).vector
            total = sign * made if total is None else total + sign * made
    assert total is not None
    return total


def _run(subject: Subject) -> Iterator[Result]:
    (block,) = subject.blocks
    started = time.monotonic()
    mechanism, companies = subject.mechanism(block), len(subject.cohort(block))
    releases = 2 * companies - 1
    predicted = deviation(mechanism, releases)
    difference = _noise(subject, block, companies)
    sure = variance_ratio(difference, predicted, SURE)
    outcome: Outcome = "refuted" if sure.high < 1 else "held"
    why = f"a difference has the noise of {releases} releases, {releases**0.5:.1f} times that of the victim's own"
    if outcome == "refuted":
        why = f"noise cancels between rounds: {sure.value:.3f} of the variance of {releases} releases is left"
    yield Result(
        attack=ATTACK.name, adversary="malicious-coordinator", view=_VIEW, statement="prediction",
        statistic="variance of its noise, over what is predicted", unit="number", outcome=outcome, reason=why,
        block=block, value=variance_ratio(difference, predicted), seconds=round(time.monotonic() - started, 2),
        budget={"releases": releases, "values": len(difference)},
    )  # fmt: skip
    subject.clock.tell(0.2, f"cohort differencing, block {block}")
    cases = draw_cases(subject, block, _CASES, "differencing")
    if cases.too_few:
        yield Result(
            attack=ATTACK.name, adversary="malicious-coordinator", view=_VIEW, statement="membership",
            statistic="members told from others (AUC)", unit="auc", outcome="inconclusive",
            reason=cases.too_few, block=block,
        )  # fmt: skip
        return
    rng = np.random.default_rng(subject.seed)
    certain = Hypotheses.of(Participation.of(mechanism).certain, cases.products.shape[1], rng)
    # The victim's own release is one of the 2n - 1; the others' noise comes on top.
    more = (predicted**2 - deviation(mechanism) ** 2) ** 0.5
    products = cases.products + cases.candidates.noise(more, rng)[0, :, cases.candidates.truths :]
    scores = log_ratio(products, cases.candidates.drawn, predicted, certain)
    alone = log_ratio(cases.products, cases.candidates.drawn, deviation(mechanism), certain)
    first = cases.candidates.drawn[: len(cases.without_noise)]
    quiet = log_ratio(cases.without_noise, first, CONTROL_NOISE * clip_of(mechanism), certain)
    control = auc(*cases.split(quiet))
    ceiling = gaussian_auc(strength(mechanism, releases))
    found = judged(*cases.split(scores), control=control, ceiling=ceiling, cut_short=cases.cut_short)
    own = auc(*cases.split(alone))
    said = f"the victim's own release alone gives {own.value:.3f}"
    yield Result(
        attack=ATTACK.name, adversary="malicious-coordinator", view=_VIEW, statement="membership",
        statistic="members told from others (AUC)", unit="auc", outcome=found.outcome, block=block,
        reason="; ".join(each for each in (found.reason, said) if each), value=found.value, control=control,
        baseline=COIN, ceiling=ceiling, budget={"cases": len(cases.member)},
        seconds=round(time.monotonic() - started, 2),
    )  # fmt: skip
    subject.clock.tell(1.0, f"cohort differencing, block {block}")


ATTACK = Attack(
    name="cohort-differencing",
    title="Subtracts a sum without the victim, who is said to have dropped out, from one with it",
    statement="membership",
    adversaries=("malicious-coordinator",),
    sees="two opened sums of one block in the same state, of cohorts that differ by one company",
    needs="a cohort of which enough companies are left to open a sum",
    cost="some seconds a block",
    applies=_applies,
    run=_run,
    weight=0.5,
    open_ended=True,
)
