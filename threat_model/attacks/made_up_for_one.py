"""Attacks that need a model, a cohort or a plan of the victim's own: the company's code has to refuse each."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ...errors import ProtocolError
from ..intervals import Estimate
from ..made_up import ATTEMPTS, Attempt, attempts
from ..results import Outcome, Result
from ..subject import Subject
from . import Attack

_VIEW = "what one company is sent that the others are not"
_ALWAYS = Estimate(value=1.0, low=1.0, high=1.0, n=1, method="exact")
_NEVER = Estimate(value=0.0, low=0.0, high=0.0, n=1, method="exact")


def _applies(subject: Subject) -> str | None:
    return None


def _run(subject: Subject) -> Iterator[Result]:
    started = time.monotonic()
    try:
        for done, attempt in enumerate(attempts(subject.run, subject.model, subject.blocks[0]), start=1):
            yield _of(attempt, time.monotonic() - started)
            started = time.monotonic()
            subject.clock.tell(done / len(ATTEMPTS), "what is made up for one company")
    except ProtocolError as error:
        yield _result("refused", "inconclusive", f"an honest message was refused too: {error}")


def _of(attempt: Attempt, seconds: float) -> Result:
    name = f"refused: {attempt.name}"
    if attempt.code is None:
        return _result(name, "refuted", "the company answered", _NEVER, seconds)
    said = f"the company refused: {attempt.code}"
    if attempt.code != attempt.expected:
        why = f"{said}, where {attempt.expected} was expected: it was for another reason, which shows nothing"
        return _result(name, "inconclusive", why, None, seconds)
    return _result(name, "held", said, _ALWAYS, seconds)


def _result(
    statistic: str, outcome: Outcome, reason: str, value: Estimate | None = None, seconds: float = 0.0
) -> Result:
    return Result(
        attack=ATTACK.name, adversary="malicious-coordinator", view=_VIEW, statement="conformance",
        statistic=statistic, unit="number", outcome=outcome, reason=reason, value=value, seconds=round(seconds, 2),
    )  # fmt: skip


ATTACK = Attack(
    name="made-up-for-one",
    title="Gives one company a model, a cohort or a plan of its own; its own code has to refuse",
    statement="conformance",
    adversaries=("malicious-coordinator",),
    sees="the company's answers",
    needs="the companies' policies",
    cost="some seconds",
    applies=_applies,
    run=_run,
    by_block=False,
    weight=0.1,
)
