"""The gate's verdict on a run: each question that it rests on, with its answer in plain words."""

from __future__ import annotations

import math

from .audited import Audited
from .document import Account, CrossCheck, Ending, Promise, Reason, Verdict
from .facts import Facts
from .judgement import judge_delta, judge_epsilon, number

_DEFAULT_GATE = "nothing protected may be found, membership apart"


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
    judged = judge_epsilon(promise.epsilon)
    e = promise.epsilon
    topic = "no finite ε holds" if e is None else f"ε = {number(e)} is {judged.word}"
    found = [Reason(good=judged.good, topic=topic, text=judged.text)]
    most = promise.examples[1] if promise.examples else None
    small = judge_delta(promise.delta, most)
    found.append(
        Reason(good=small.good, topic=f"δ is {small.word or 'for each company to judge'}", text=small.text)
    )
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
    gate = audit.audit.gate
    limits = f"{len(gate.limit)} limit{'' if len(gate.limit) == 1 else 's'}" if gate.limit else _DEFAULT_GATE
    text = (
        f"Gate: {limits}; membership is allowed up to an area of {gate.membership:g}, by its interval's lower end. "
        f"The audit {audit.ending}: {audit.counts}."
    )
    good = {"passed": True, "failed": False, "inconclusive": None}[audit.ending]
    return Reason(
        good=good, topic=f"the audit {audit.ending}" if good else f"the audit {_ended(audit)}", text=text
    )


def _ended(audit: Audited) -> str:
    return "failed" if audit.ending == "failed" else "left questions open"
