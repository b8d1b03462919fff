"""What a gate's verdict says of the audit: what failed it, what was found and allowed, what was left open."""

from __future__ import annotations

from collections.abc import Iterable

from ..gate import Gate
from ..results import Result, Statement
from .audited import Audited
from .document import Reason

_FAILED: dict[Statement, str] = {
    "reconstruction": "examples were rebuilt or read off",
    "membership": "members are told from others too well",
    "property": "more was learnt of a company than a limit allows",
    "extraction": "the model repeats planted secrets",
    "certificate": "the claimed ε is refuted",
    "conformance": "the mechanism does not do what its account assumes",
    "estimate": "an estimate of ε is above a limit",
    "prediction": "a prediction is above a limit",
}
_FOUND: dict[Statement, str] = {
    "reconstruction": "examples rebuilt or read off",
    "membership": "members told from others",
    "property": "facts of a company as a whole",
    "extraction": "planted secrets repeated",
}


def audit_reason(audit: Audited) -> Reason:
    results = {r.key: r for r in audit.audit.results}
    verdict, gate = audit.audit.verdict, audit.audit.gate
    text = f"{_gate(gate)} Results: {audit.counts}."
    if verdict.ending == "failed":
        why = _kinds((results[key] for key in verdict.failures if key in results), _FAILED)
        topic = f"the audit failed ({', '.join(why)})" if why else "the audit failed"
        return Reason(good=False, topic=topic, text=text)
    if verdict.ending == "inconclusive":
        names = sorted({results[key].attack if key in results else key for key in verdict.inconclusive})
        n = len(names)
        topic = f"the audit left questions open ({n} attack{'' if n == 1 else 's'} without an answer)"
        return Reason(good=None, topic=topic, text=f"{text} Without an answer: {', '.join(names)}.")
    found = _kinds(
        (r for r in results.values() if r.protected and r.outcome in ("found", "partly found")), _FOUND
    )
    if found:
        topic = f"the audit passed, since its gate allows what it found ({', '.join(found)})"
        return Reason(good=True, topic=topic, text=text, caution=True)
    return Reason(good=True, topic="the audit passed: nothing was found", text=text)


def _kinds(results: Iterable[Result], words: dict[Statement, str]) -> list[str]:
    statements = {r.statement for r in results}
    return [said for statement, said in words.items() if statement in statements]


def _gate(gate: Gate) -> str:
    """What the audit's gate allows, as it is set."""
    if gate.found == "fails":
        told = "The audit's gate: nothing of an example may be rebuilt or read off, no planted secret be repeated"
    else:
        told = "The audit's gate: what is found does not fail it by itself"
    told += (
        f"; of a member and another, the member may be picked up to {100 * gate.membership:.3g} times in 100, by the "
        "interval's lower end; facts of a company as a whole are not promised, and fail nothing"
    )
    if gate.limit:
        told += f"; beside that {len(gate.limit)} limit{'' if len(gate.limit) == 1 else 's'}"
    if gate.inconclusive == "passes":
        told += "; what ended without an answer passes"
    return f"{told}."
