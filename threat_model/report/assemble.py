"""Puts a run's report together from its files: every number of the page, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from ... import __version__
from ...errors import RunError
from ...privacy.accounting import Guarantee, finite
from ...privacy.events import Event
from ...privacy.group_privacy import group_epsilon
from ...protocol.release import planned_size, run_terms
from ...server.own_account import planned
from ...server.representation import Representation
from ...server.run_folder import RunFolder
from ...settings import Plan
from .adapted import adapted
from .answers import answers, not_tested
from .audited import Audited
from .costs import costs, largest_state, megabytes
from .diagnosed import Diagnosed
from .document import (
    Account,
    CrossCheck,
    Frontier,
    GroupOfExamples,
    Personal,
    PersonalQuality,
    Promise,
    Quality,
    Report,
    Verdict,
)
from .facts import Facts
from .findings import largest_against_company, largest_epsilon
from .judgement import certainty, judge_delta, judge_epsilon, number
from .measures import share_interval
from .mechanism_words import mechanism_sentences
from .nist import questions
from .provenance import commands, cross_checks, digests, versions
from .sections import sections
from .spending import Spending
from .subgroups import subgroups
from .verdict import verdict_of

_UNPROTECTED = "Without the protocol: no guarantee was accounted at companies."
GROUPS = (2, 5)  # examples of one person


@dataclass(frozen=True)
class Judged:
    """What a verdict rests on, and the verdict."""

    promise: Promise
    accounts: tuple[Account, ...]
    checks: tuple[CrossCheck, ...]
    verdict: Verdict


def judge(run: RunFolder, facts: Facts, audit: Audited | None) -> Judged:
    """Raises: RunError, LedgerError where a file of the run cannot be read."""
    promise, accounts = _promise(facts, planned_size(facts.plan)), accounts_of(facts.spending)
    checks = cross_checks(run, facts, audit)
    return Judged(promise, accounts, checks, verdict_of(facts, promise, accounts, audit, checks))


def assemble(
    run: RunFolder,
    facts: Facts,
    diagnosed: Diagnosed | None,
    audit: Audited | None,
    frontier: Frontier | None = None,
) -> Report:
    """`frontier`: of the sweep that the run is a cell of.

    Raises: RunError, LedgerError where a file of the run cannot be read.
    """
    size = planned_size(facts.plan)
    judged = judge(run, facts, audit)
    promise, accounts, checks = judged.promise, judged.accounts, judged.checks
    attackers = answers(audit)
    quality = _quality(run, facts)
    rows = [row for row in run.metrics() if row["round"] > 0]
    spent = costs(facts.plan, rows, size, facts.seconds, audit.audit.seconds if audit else None)
    report = Report(
        version=__version__,
        run=facts.run,
        name=facts.settings.name,
        simulated=not facts.real,
        finished=facts.finished,
        rounds=facts.plan.training.rounds,
        rounds_done=facts.rounds_done,
        companies=len(facts.took_part) or facts.settings.companies.count,
        left=_left(facts, rows, size, spent.bytes_up_a_company),
        verdict=judged.verdict,
        promise=promise,
        accounts=accounts,
        audit=audit.ending if audit else "none",
        attackers=attackers,
        not_tested=not_tested(audit, real=facts.real, blocks=facts.plan.model.blocks),
        membership=tuple(curve.roc() for curve in audit.stored.curves) if audit else (),
        quality=quality,
        adapted=adapted(facts.plan, size, largest_state(facts.plan)),
        representation=Representation.read(run),
        frontier=frontier,
        costs=spent,
        checks=checks,
        digests=digests(run, facts),
        versions=versions(),
        commands=commands(run, facts, diagnosed, audit),
        settings=(facts.simulation or facts.settings).model_dump(mode="json"),
        questions=questions(
            promise=promise, accounts=accounts, attackers=attackers, quality=quality, checks=checks,
            audit=audit.ending if audit else "none", simulated=not facts.real, features=facts.plan.model.features,
        ),
    )  # fmt: skip
    return report.model_copy(update={"sections": sections(report, facts, diagnosed, audit)})


def _planned(facts: Facts) -> Guarantee:
    return planned(facts.plan, facts.settings.smallest_group)


def _whole(facts: Facts, size: int) -> Event:
    """The whole run as one event: as the ledgers are pinned to it, else as the plan has it.

    Where cohorts are drawn, ledgers are pinned to their companies' own rounds, the plan to the most of any company.
    """
    pinned = {s.planned for s in facts.spending if s.planned is not None}
    if len(pinned) == 1 and facts.plan.drawn is None:
        return pinned.pop()
    return run_terms(facts.plan, size, facts.settings.smallest_group).whole


def _promise(facts: Facts, size: int) -> Promise:
    plan = facts.plan
    epsilon = finite(largest_epsilon(facts))
    company = finite(largest_against_company(facts))
    delta = max((s.delta for s in facts.spending), default=plan.delta)
    counts = [s.examples for s in facts.spending if s.examples is not None]
    most = max(counts, default=None)
    events = [event for s in facts.spending[:1] for event in s.events]
    whole = _whole(facts, size) if facts.private else None
    found = _planned(facts) if facts.private else None
    top = max(facts.spending, key=lambda s: s.spent, default=None)
    if facts.spending:
        longest = max(facts.spending, key=lambda s: len(s.events))
        events = list(longest.events)
    groups = tuple(
        GroupOfExamples(examples=k, epsilon=finite(group_epsilon(whole, k, delta)))
        for k in GROUPS
        if whole is not None and plan.training.group is None  # else a person's examples are one group
    )
    against = top.against if top is not None and top.against else found.against if found else ""
    judged, small = judge_epsilon(epsilon if facts.private else None), judge_delta(delta, most)
    void = False in (judged.good, small.good)
    return Promise(
        private=facts.private,
        epsilon=epsilon if facts.private else None,
        epsilon_against_company=company if facts.private else None,
        delta=delta,
        unit=plan.unit_words,
        adjacency=_adjacency(plan, found),
        against=against,
        certainty=None if epsilon is None else certainty(epsilon, delta),
        examples=(min(counts), max(counts)) if counts else None,
        delta_times_examples=None if most is None else delta * most,
        groups=groups,
        judgement=judged.text,
        delta_judgement=small.text,
        mechanisms=mechanism_sentences(events or ([whole] if whole is not None else []))
        or ((_UNPROTECTED if facts.unprotected else "No noise was added."),),
        trust=_trust(facts, against, epsilon, company, void),
    )


def _adjacency(plan: Plan, found: Guarantee | None) -> str:
    said = "add or remove one example" if found is None else found.adjacency
    return said if plan.training.group is None else said.replace("example", "group")


def _trust(
    facts: Facts, against: str, epsilon: float | None, company: float | None, void: bool
) -> tuple[str, ...]:
    """`void`: the promise is worth nothing, which what it rests on must not read as if it were."""
    plan = facts.plan
    it = "Such as it is, it" if void else "It"
    if facts.unprotected:
        return (_UNPROTECTED,)
    if not facts.private:
        least = plan.secure_aggregation.minimum_cohort
        return (f"Secure aggregation alone: sums of at least {least} companies are opened, without noise.",)
    if plan.secure_step:
        few = f"at most {plan.colluders} of the companies" if plan.colluders else "none of the companies"
        told = (
            f"{it} rests on secure aggregation and on {few} telling the coordinator their share of the noise, or "
            f"adding none; it holds against {against}, for the opened sums alone."
        )
        if epsilon is not None and company != epsilon:
            weaker = "no finite ε holds" if company is None else f"ε = {number(company)}"
            told += (
                " It holds against the coordinator only: a company that takes part knows its own share of the noise, "
                f"and against it {weaker}."
            )
    else:
        told = (
            f"{it} holds against {against}: each company adds all of the noise itself, before anything leaves it, so "
            "secure aggregation adds to it and is not needed for it."
        )
    if (drawn := plan.drawn) is not None:
        told += (
            f" Each round's {drawn.per_round} companies were drawn from {drawn.companies:,}: the account is of the "
            f"company that is drawn most often, with {number_of(plan.most_releases, 'release')}; others spend less. "
            "Everybody can know the draw, so no privacy is gained by it."
        )
    return (
        told,
        "Each company has to trust its own machine, the reviewed package on it, and its random numbers.",
    )


def number_of(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def accounts_of(spending: Sequence[Spending]) -> tuple[Account, ...]:
    """Companies of which every figure is the same share a row."""
    by: dict[tuple[object, ...], list[Spending]] = {}
    for s in spending:
        by.setdefault(s.alike, []).append(s)
    return tuple(_account(members) for members in by.values())


def _account(members: list[Spending]) -> Account:
    first = members[0]
    wrong = [s.second for s in members if s.second is not None and not s.second.agrees]
    second = wrong[0] if wrong else first.second
    return Account(
        companies=tuple(s.company for s in members),
        epsilon=finite(first.spent),
        epsilon_against_company=finite(first.spent_company),
        ceiling=first.ceiling,
        delta=first.delta,
        releases=first.releases,
        releases_of_other_runs=sum(s.other_releases for s in members),
        accountant=first.account,
        second="" if second is None else second.wrong or second.says,
        second_low=None if second is None or second.lower is None else finite(second.lower),
        second_high=None if second is None or second.upper is None else finite(second.upper),
        agrees=None if second is None else second.agrees,
    )


def _left(facts: Facts, rows: list[dict[str, object]], size: int, sent: int) -> tuple[str, ...]:
    if facts.unprotected:
        return ("Nothing by a protocol: companies were computed, and their updates summed, in one place.",)
    plan, cohort = facts.plan, facts.plan.secure_aggregation.minimum_cohort
    noised = "clipped and noised" if facts.private else "clipped, but not noised"
    if plan.secure_step and facts.private:
        noised = "clipped, with its share of the noise"
    summed = sum(len(task["survivors"]) > 0 for row in rows for task in row.get("tasks", ()))  # type: ignore[attr-defined]
    often = {
        "sequential": "one update of one block a round",
        "parallel": "one update of one block a round",
        "all": "one update of every block a round",
    }[plan.training.assignment]
    rounds = number_of(len(rows), "round")
    who, when = "Each company sent", rounds
    if plan.drawn is not None:
        who = f"Each of the {plan.drawn.per_round} companies drawn for a round sent"
        when = f"{rounds} by the company drawn most often"
    return (
        f"{who} {often}: {size:,} numbers, {noised}, then masked; {megabytes(sent)} in {when}.",
        f"Only sums of at least {cohort} companies were opened: {summed:,} sums.",
        "Never sent: examples, labels, their number, losses. Seen by the coordinator: who took part, and when.",
    )


def _quality(run: RunFolder, facts: Facts) -> Quality | None:
    u = facts.utility
    if u is None:
        return None
    m, after = u.measure, u.last.judged[-1]
    low, high = share_interval(after, u.judged_examples) if m.is_share and u.judged_examples else (None, None)
    return Quality(
        metric=m.words,
        unit=m.metric.unit,
        higher_is_better=m.metric.higher_is_better,
        data=u.data,
        examples=u.judged_examples,
        round=u.last.round,
        before=u.first.judged[-1],
        after=after,
        low=low,
        high=high,
        public_before=u.first.public[-1] if u.first.public else None,
        public_after=u.last.public[-1] if u.last.public else None,
        public_examples=u.public_examples,
        non_private=u.non_private,
        by_block=tuple(zip(u.first.judged, u.last.judged, strict=True)),
        subgroups=() if facts.real else subgroups(run, m),
        personal=None if facts.real else _personal(run),
    )


def _personal(run: RunFolder) -> Personal | None:
    """As the end of the simulation measured it."""
    told = (run.read_json("result.json") or {}).get("personal")
    if told is None:
        return None
    try:
        companies = [PersonalQuality(company=name, **figures) for name, figures in told["companies"].items()]
        return Personal(part=told["part"], companies=tuple(companies))
    except (ValidationError, AttributeError, KeyError, TypeError):
        raise RunError(f'{run.path / "result.json"}: "personal" is not what a simulation writes') from None
