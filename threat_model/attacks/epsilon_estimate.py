"""What epsilon would be if the scores of canaries were Gaussian and independent: an estimate, not a bound."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from ...errors import InputError, PrivacyError
from ..epsilon.estimate import epsilon_estimate
from ..epsilon.planted import LEVEL, Planted
from ..intervals import Estimate
from ..results import Outcome, Result
from ..subject import Subject
from . import Attack

NAME = "epsilon-estimate"
_VIEW = "one release, every canary known to be in it; scores taken for Gaussian"
_LEAST_VALUES = 100


def _applies(subject: Subject) -> str | None:
    if not subject.plan.private:
        return "the plan promises no noise (noise_multiplier = 0), so there is no epsilon to be estimated"
    size = Planted(subject, subject.blocks[0], NAME).size
    if size < _LEAST_VALUES:
        return f"a block has {size} values, room for as many orthogonal canaries; {_LEAST_VALUES} are needed"
    return None


def _run(subject: Subject) -> Iterator[Result]:
    for block in subject.blocks:
        planted = Planted(subject, block, NAME)
        level = 1 - LEVEL / (subject.plan.model.blocks * len(subject.private))
        claimed, delta, m = planted.known.epsilon(), subject.plan.delta, planted.canaries.count
        null: Estimate | None = None
        for number, company in enumerate(planted.companies):
            subject.clock.tell(number / len(planted.companies), f"block {block}, {company}")
            started = time.monotonic()
            value: Estimate | None = None
            outcome: Outcome = "inconclusive"
            if subject.clock.over:
                reason = "the time ran out before its release"
            else:
                try:
                    if null is None:
                        noise = planted.scores(company, np.zeros(m, dtype=np.bool_), "null")
                        coins = planted.coins(m, "null")
                        null = epsilon_estimate(noise[coins], noise[~coins], delta, level)
                    inside = planted.coins(m, company)
                    scores = planted.scores(company, inside, "audited")
                    value = epsilon_estimate(scores[inside], scores[~inside], delta, level)
                    outcome, reason = _judged(value, claimed)
                except (InputError, PrivacyError) as error:
                    reason = f"the step was refused: {error}"
            yield Result(
                attack=NAME, adversary="auditor", view=_VIEW, statement="estimate",
                statistic=f"epsilon at delta={delta:g}, if scores are Gaussian", unit="epsilon", outcome=outcome,
                reason=reason, block=block, company=company, value=value, baseline=null,
                budget={"canaries": m}, seconds=round(time.monotonic() - started, 2),
            )  # fmt: skip


def _judged(value: Estimate, claimed: float) -> tuple[Outcome, str]:
    """An estimate refutes nothing: where it lies above the claim, its model or the claim is wrong."""
    if value.low > claimed:
        why = f"from {value.low:.4g} on, above the claimed {claimed:.4g}: see conformance and certificate"
        return "inconclusive", why
    return "held", f"claimed {claimed:.4g}; conditional on its model"


ATTACK = Attack(
    name=NAME,
    title="The Gaussian mechanism that canaries' scores look like, as an epsilon: conditional on that model",
    statement="estimate",
    adversaries=("auditor",),
    sees="a company's release with made-up gradients in it, and the coin that put each in or left it out",
    needs="a plan with noise, and as many values in a block as canaries",
    cost="about a second a company and block",
    applies=_applies,
    run=_run,
    weight=0.5,
)
