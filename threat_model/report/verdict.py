"""The gate's verdict on a run: each question that it rests on, with its answer in plain words."""

from __future__ import annotations

import math

from .audit_reason import audit_reason
from .audited import Audited
from .document import Account, CrossCheck, Ending, Promise, Reason, Verdict
from .facts import Facts
from .judgement import judge_delta, judge_epsilon


def verdict_of(
    facts: Facts,
    promise: Promise,
    accounts: tuple[Account, ...],
    audit: Audited | None,
    checks: tuple[CrossCheck, ...],
) -> Verdict:
    reasons = [*_of_promise(facts, promise, accounts), _of_audit(facts, audit)]
    if not facts.finished:
        done = f"{facts.rounds_done} of {facts.plan.training.rounds} rounds have run so far."
        reasons.append(Reason(good=None, topic="the run is not finished", text=done))
    wrong = [check.what for check in checks if not check.agrees]
    text = f"{len(checks) - len(wrong)} of {len(checks)} comparisons between the run's own files agree."
    if wrong:
        text += f" Not: {'; '.join(wrong)}."
    if checks:
        topic = "numbers of the run contradict each other" if wrong else "the run's numbers agree"
        reasons.append(Reason(good=not wrong, topic=topic, text=text))
    ending: Ending = "passed"
    if any(r.good is None for r in reasons):
        ending = "open"
    if any(r.good is False for r in reasons):
        ending = "failed"
    return Verdict(ending=ending, reasons=tuple(reasons))


def _of_promise(facts: Facts, promise: Promise, accounts: tuple[Account, ...]) -> list[Reason]:
    if facts.unprotected:
        text = "No guarantee was accounted at companies: a study of utility, without keys, masks and ledgers."
        return [Reason(good=False, topic="it ran without the protocol", text=text)]
    if not facts.private:
        text = "No noise was added: nothing bounds what the sums, or the model, tell of one example."
        return [Reason(good=False, topic="there is no differential privacy", text=text)]
    most = promise.examples[1] if promise.examples else None
    found = [
        Reason(good=judged.good, topic=judged.topic, text=judged.text, caution=judged.caution)
        for judged in (judge_epsilon(promise.epsilon), judge_delta(promise.delta, most))
    ]
    if not accounts:
        return found
    over = [a for a in accounts if (math.inf if a.epsilon is None else a.epsilon) > a.ceiling]
    names = [name for a in over for name in a.companies]
    ceilings = " and ".join(f"{c:g}" for c in sorted({a.ceiling for a in accounts}))
    if over:
        text = f"Above what their policies allow: {', '.join(names[:5])}{' and others' if len(names) > 5 else ''}."
        found.append(Reason(good=False, topic="a ledger is above its ceiling", text=text))
    else:
        total = sum(len(a.companies) for a in accounts)
        text = f"All {total} companies are within the ceiling of their policy (ε of at most {ceilings})."
        found.append(Reason(good=True, topic="every ledger is within its policy", text=text))
    return found


def _of_audit(facts: Facts, audit: Audited | None) -> Reason:
    if facts.real:
        text = "A real run cannot be attacked: the examples stay with the companies. Audit a simulation of its plan."
        return Reason(good=None, topic="no audit of this run", text=text)
    if audit is None:
        return Reason(good=None, topic="no audit of this run", text="Nobody has attacked it yet.")
    return audit_reason(audit)
