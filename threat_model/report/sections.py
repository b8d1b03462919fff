"""The sections of the page, each with what it comes to in one line, made of the report's own figures."""

from __future__ import annotations

from ..adversaries import ADVERSARIES
from .adapted import told as words_of
from .answers import MEMBER, REBUILD
from .audit_rows import statement_rows
from .audited import Audited
from .costs import megabytes
from .diagnosed import Diagnosed
from .document import Report, Section
from .facts import Facts
from .findings import find
from .judgement import number, plain
from .measures import Measure

_NAMES = {
    "threat": "Threat model and adversaries",
    "account": "Mechanisms and account",
    "frontier": "Privacy against utility",
    "leakage": "Leakage by block and adversary",
    "membership": "Membership: hits against false alarms",
    "statements": "Three statements about epsilon",
    "reconstructions": "Originals and reconstructions",
    "utility": "Utility",
    "representation": "Representation kept",
    "costs": "Costs",
    "reproduce": "Settings, digests and how to reproduce",
    "questions": "The questions of NIST SP 800-226",
}
Finding = tuple[str, bool]  # and whether somebody should look


def sections(
    r: Report, facts: Facts, diagnosed: Diagnosed | None, audit: Audited | None
) -> tuple[Section, ...]:
    """In the order of the page."""
    told: dict[str, Finding] = {
        "threat": _threat(r, audit),
        "account": _account(r, facts),
        "frontier": _frontier(r, facts.measure),
        "leakage": _leakage(r, audit),
        "membership": _membership(r),
        "statements": _statements(audit),
        "reconstructions": _reconstructions(audit),
        "utility": _utility(r, facts, diagnosed),
        "costs": (_costs(r), False),
        "reproduce": _reproduce(r),
        "questions": (f"{len(r.questions)} questions in its order, each with its answer and a link.", False),
    }
    if r.adapted is not None:
        told["representation"] = words_of(r.adapted, r.representation), bool(facts.guarded)
    names = [(anchor, name) for anchor, name in _NAMES.items() if anchor in told]
    return tuple(
        Section(anchor=anchor, number=i, name=name, finding=told[anchor][0], attention=told[anchor][1])
        for i, (anchor, name) in enumerate(names, start=1)
    )


def _threat(r: Report, audit: Audited | None) -> Finding:
    reasons = r.verdict.reasons
    counts = [(sum(x.good is good for x in reasons), word) for good, word in _ANSWERED]
    text = f"{len(reasons)} limits of the gate: " + ", ".join(f"{n} {word}" for n, word in counts if n)
    asked = 0 if audit is None else len(audit.audit.adversaries)
    return f"{text}. {asked} of {len(ADVERSARIES)} adversaries set on the run.", False


_ANSWERED = ((True, "kept"), (None, "open"), (False, "not kept"))


def _account(r: Report, facts: Facts) -> Finding:
    p = r.promise
    if facts.unprotected:
        return "Without the protocol: no ledger was charged, and no ε holds.", True
    if not p.private:
        return "No noise was added: no ε holds.", True
    told = "No finite ε" if p.epsilon is None else f"ε = {number(p.epsilon)}"
    text = f"{told} at δ = {plain(p.delta)} for {p.unit}"
    if not r.accounts:
        return f"{text}, by the plan; ledgers lie with the companies.", p.epsilon is None
    total = sum(len(a.companies) for a in r.accounts)
    wrong = sum(len(a.companies) for a in r.accounts if a.agrees is False)
    sure = sum(len(a.companies) for a in r.accounts if a.agrees)
    if wrong:
        return f"{text}; a second accountant disagrees with {wrong} of {total} ledgers.", True
    agreed = f"a second accountant agrees with {sure} of {total} ledgers" if sure else "not recomputed"
    return f"{text}; {agreed}.", p.epsilon is None


def _frontier(r: Report, m: Measure) -> Finding:
    if r.frontier is not None:
        private = [p for p in r.frontier.points if p.kind == "private" and p.epsilon is not None]
        seen = [f"{m.show(p.quality)} at ε {p.epsilon:g}" for p in (private[:1] + private[1:][-1:])]
        seen += [
            f"{m.show(p.quality)} without noise" for p in r.frontier.points if p.kind == "without noise"
        ][:1]
        return f"One cell of a sweep: {m.words} {', '.join(seen)}.", False
    if r.quality is None:
        return "No round has been evaluated.", False
    epsilon = "without noise" if r.promise.epsilon is None else f"at ε = {number(r.promise.epsilon)}"
    text = f"One point: {m.words} {m.show(r.quality.before)} → {m.show(r.quality.after)} {epsilon}"
    if r.quality.non_private is not None:
        return f"{text}; {m.show(r.quality.non_private)} without noise.", False
    return text + ("; what the noise costs was not measured." if r.promise.private else "."), False


def _leakage(r: Report, audit: Audited | None) -> Finding:
    if audit is None:
        return "No attack was made on this run.", r.simulated
    rebuilt = [a for a in r.attackers if a.question == REBUILD]
    exact = f" Rebuilt exactly? {rebuilt[0].answer}" if rebuilt else ""
    return f"Audit {audit.ending}: {audit.counts}.{exact}", audit.ending != "passed"


def _membership(r: Report) -> Finding:
    found = [a for a in r.attackers if a.question == MEMBER]
    if not found:
        return "No membership test was made.", False
    return found[0].answer, bool(found[0].could)


def _statements(audit: Audited | None) -> Finding:
    rows = statement_rows(audit.audit.results) if audit else []
    if not rows:
        return "None was made.", False
    counts = []
    for name in ("certificate", "conformance", "estimate"):
        tests = sum(row.tests for row in rows if row.statement == name)
        word = "conformance check" if name == "conformance" else name
        if tests:
            counts.append(f"{tests} {word}{'' if tests == 1 else 's'}")
    refuted = sum(row.outcome == "refuted" for row in rows)
    end = f"{refuted} of {len(rows)} kinds refute the claim" if refuted else "none refutes the claim"
    return f"{', '.join(counts)}: {end}.", bool(refuted)


def _reconstructions(audit: Audited | None) -> Finding:
    if audit is None or not audit.galleries:
        return "None to show.", False
    shown = sum(len(g.rows[0].pictures) for g in audit.galleries)
    attacks = len({g.attack for g in audit.galleries})
    return (
        f"{shown} private originals beside what {attacks} attack{'' if attacks == 1 else 's'} made of them: handle "
        "this page as you handle the data."
    ), False


def _utility(r: Report, facts: Facts, diagnosed: Diagnosed | None) -> Finding:
    look = [finding.topic for finding in find(facts, diagnosed) if finding.attention]
    m, q = facts.measure, r.quality
    parts = []
    if q is not None:
        parts.append(f"{m.title} {m.show(q.before)} → {m.show(q.after)} on {q.data}")
        for groups in q.subgroups:
            lost = sum(g.lost for g in groups.groups)
            many = {"company": "companies", "class": "classes"}[groups.of]
            parts.append(f"{lost or 'none'} of {len(groups.groups)} {many} surely lost")
    if look:
        parts.append(f"to look at: {', '.join(topic.lower() for topic in dict.fromkeys(look))}")
    return ("; ".join(parts) or "No round has been evaluated") + ".", bool(look)


def _costs(r: Report) -> str:
    c = r.costs
    took = f"{c.rounds:,} round{'' if c.rounds == 1 else 's'}"
    if c.seconds is not None:
        took += f" in {c.seconds:.0f} s"
    sent, received = megabytes(c.bytes_up_a_company), megabytes(c.bytes_down_a_company)
    return f"{took}; a company sent {sent} and received {received}."


def _reproduce(r: Report) -> Finding:
    agree = sum(c.agrees for c in r.checks)
    text = f"{agree} of {len(r.checks)} comparisons between two sources agree"
    return f"{text}; {len(r.digests)} digests; the commands.", agree < len(r.checks)
