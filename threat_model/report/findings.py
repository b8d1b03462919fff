"""The report's findings: sentences made from the run's data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import binomtest

from ...privacy.accounting import Guarantee, round_up, shown
from ...server.own_account import planned
from .audited import Audited
from .diagnosed import Diagnosed
from .facts import Facts, Utility
from .measures import Measure


@dataclass(frozen=True)
class Finding:
    """One or two sentences; `attention`: to be checked before the run continues."""

    topic: str
    text: str
    attention: bool = False


def largest_epsilon(facts: Facts) -> float:
    """The largest of the ledgers' epsilons; the plan's, if the ledgers are elsewhere."""
    if not facts.private:
        return math.inf
    return max((s.spent for s in facts.spending), default=0.0) or _planned(facts).epsilon


def largest_against_company(facts: Facts) -> float:
    """As `largest_epsilon`, against a company that takes part: larger where shared noise tolerates no colluder."""
    if not facts.private:
        return math.inf
    return (
        max((s.spent_company for s in facts.spending), default=0.0) or _planned(facts).epsilon_against_company
    )


def _planned(facts: Facts) -> Guarantee:
    return planned(facts.plan, facts.settings.smallest_group)


def find(facts: Facts, diagnosed: Diagnosed | None, audit: Audited | None) -> list[Finding]:
    """All findings, the most important for a privacy officer first."""
    found: list[Finding] = []
    if not facts.finished:
        done, planned = facts.rounds_done, facts.plan.training.rounds
        found.append(Finding("Unfinished", f"{done} of {planned} rounds have run so far.", True))
    if facts.utility is not None:
        found += _utility(facts.utility, facts)
    if diagnosed is not None:
        found += [Finding(*sentence) for sentence in diagnosed.sentences()]
    found.append(_epsilon(facts))
    found.append(_attendance(facts))
    if facts.flagged:
        rounds = len({each["round"] for each in facts.flagged})
        text = (
            f"In {_many(rounds, 'round', 'rounds')} the model was better on public data without the sum of one group "
            "of companies: a sign of poisoned updates, or of private data unlike the public ones."
        )
        found.append(Finding("Influence", text, True))
    found += _real() if facts.real else _audit(audit)
    return found


def delta(value: float) -> str:
    """1e-5 rather than 1e-05."""
    return f"{value:g}".replace("e-0", "e-")


def _utility(utility: Utility, facts: Facts) -> list[Finding]:
    first, last, m = utility.first, utility.last, utility.measure
    before, after = first.judged[-1], last.judged[-1]
    text = (
        f"{m.title} on {utility.data} {_moved(m, before, after)} from {m.show(before)} (public model) "
        f"to {m.show(after)} after round {last.round}, a change of {m.change(after - before)}"
        f"{' points' if m.is_share else ''} ({m.direction}{_certainty(utility, after)})"
    )
    chance = _may_be_chance(utility, before, after)
    text += ". The public model lies within that interval, so the change may be chance" if chance else ""
    text += f". {_price(utility, after)}" if facts.private and utility.private else "."
    found = [Finding("Utility", text, chance or not m.noticeably_better(before, after))]
    if not utility.private:
        text += " What it does for one company's own data is known to that company alone."
        found = [Finding("Utility", text, chance or not m.noticeably_better(before, after))]
    if last.public and m.forgotten(first.public[-1], last.public[-1]):
        text = (
            f"The model forgets public data: {m.words} there went from {m.show(first.public[-1])} to "
            f"{m.show(last.public[-1])}."
        )
        found.append(Finding("Forgetting", text, True))
    losing = utility.losing_blocks()
    if losing:
        lost = "; ".join(f"block {b} loses {m.amount(share)}" for b, share in losing)
        text = f"Part of the chain takes quality away: {lost}."
        best = utility.best_block
        if m.noticeably_worse(last.judged[best], after):
            text += (
                f" Stopping after block {best} would give {m.show(last.judged[best])} on the same "
                f"data instead of {m.show(after)}."
            )
        found.append(Finding("A block that hurts", text, True))
    return found


def _certainty(utility: Utility, after: float) -> str:
    n = utility.judged_examples
    if not n:
        return ""
    if not utility.measure.is_share:
        return f"; {n:,} examples"
    low, high = _interval(after, n)
    return f"; {n:,} examples, 95% interval {low:.1%} to {high:.1%}"


def _interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's, at 95%."""
    low, high = binomtest(round(share * n), n).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def _may_be_chance(utility: Utility, before: float, after: float) -> bool:
    """Whether so few held-out examples cannot tell the change from chance; known of shares alone."""
    n = utility.judged_examples
    if not n or not utility.measure.is_share:
        return False
    low, high = _interval(after, n)
    return low <= before <= high


def _price(utility: Utility, after: float) -> str:
    plain, m = utility.non_private, utility.measure
    if plain is None:
        return (
            "What the noise costs was not measured: fedblocks simulate --with-reference adds the same run "
            "without noise."
        )
    if m.noticeably_worse(plain, after):
        cost = f"the noise cost {m.amount(plain - after)}"
    elif m.noticeably_better(plain, after):
        cost = f"{m.amount(plain - after)} worse, so the noise cost nothing"
    else:
        cost = "no noticeable difference"
    return f"The same run without noise reaches {m.show(plain)}: {cost}."


def _epsilon(facts: Facts) -> Finding:
    if not facts.private:
        text = (
            "No differential privacy: nothing bounds what the opened sums, or the model, tell about one "
            "example. Secure aggregation alone is no such bound."
        )
        return Finding("Privacy", text, True)
    if facts.real:
        return _own_account(facts)
    if not facts.spending:
        text = (
            "The companies' ledgers are not in this folder. The whole plan costs a company epsilon "
            f"{round_up(_planned(facts).epsilon)} at delta {delta(facts.plan.delta)}, if it is the first run of its "
            f"ledger{_company(facts)}."
        )
        return Finding("Privacy", text)
    top = max(facts.spending, key=lambda s: s.spent)
    if not math.isfinite(top.spent):
        text = f"No epsilon holds for {top.company}: its ledger has a release without noise, or with next to none."
        return Finding("Privacy", text, True)
    alike = len({s.spent for s in facts.spending}) == 1 < len(facts.spending)
    whose = f"all {len(facts.spending)} companies alike" if alike else top.company
    text = (
        f"The largest epsilon spent is {round_up(top.spent)} ({whose}), under a ceiling of {top.ceiling:g}, "
        f"for one example of one company, at delta {delta(top.delta)} (accountant: {top.account}){_company(facts)}."
    )
    if top.spent > top.ceiling:
        text += " That is above the ceiling that this company's policy now sets."
    return Finding("Privacy", text, top.spent > top.ceiling)


def _own_account(facts: Facts) -> Finding:
    """Of a real run: what follows from the plan and the rounds, and who decides."""
    most = max((each.epsilon for each in facts.accounts), default=0.0)
    text = (
        "By the coordinator's own account, from its plan and its rounds, no company's releases so far cost more than "
        f"epsilon {shown(most)} at delta {delta(facts.plan.delta)}, for one example of one company, unless a round "
        "was begun anew; in any case no more than the whole plan, epsilon "
        f"{round_up(_planned(facts).epsilon)}{_company(facts)}. Both hold where the run is the first of a company's "
        "ledger, which lies with that company and alone decides."
    )
    return Finding("Privacy", text)


def _company(facts: Facts) -> str:
    """The epsilon against a company that takes part, where the other holds against the coordinator only."""
    if largest_against_company(facts) <= largest_epsilon(facts):
        return ""
    return (
        ", against the coordinator only: a company that takes part knows its own share of the noise, and against it "
        f"epsilon is {shown(largest_against_company(facts))}"
    )


def _attendance(facts: Facts) -> Finding:
    if not facts.absences and not facts.aborted:
        text = f"No company was missing and no round was aborted in {facts.rounds_done} rounds."
        return Finding("Dropouts", text)
    companies, times = len({a.company for a in facts.absences}), len(facts.absences)
    text = (
        f"{_many(companies, 'company', 'companies')} dropped out {_many(times, 'time', 'times')} in "
        f"{facts.rounds_done} rounds; {_many(len(facts.aborted), 'round was', 'rounds were')} aborted"
        f"{_aborted(facts)}."
    )
    if facts.unused_charges:
        text += (
            f" {_many(facts.unused_charges, 'release was', 'releases were')} charged to a ledger but reached "
            "no sum: privacy spent for nothing."
        )
    return Finding("Dropouts", text, bool(facts.aborted))


def _aborted(facts: Facts) -> str:
    if not facts.aborted:
        return ""
    return ", where nothing was opened" if facts.one_block_a_round else ", wholly or for some of their blocks"


def _audit(audit: Audited | None) -> list[Finding]:
    if audit is not None:
        return [Finding(*sentence) for sentence in audit.sentences()]
    text = "The releases of this run have not been attacked yet, so nothing is known about what leaks."
    return [Finding("Audit", text, True)]


def _real() -> list[Finding]:
    text = (
        "An audit attacks companies' own examples, and these never leave them: a real run has none. Simulate its "
        "settings on data of yours, and audit that."
    )
    return [Finding("Audit", text)]


def _moved(m: Measure, before: float, after: float) -> str:
    if not m.noticeably_better(before, after) and not m.noticeably_worse(before, after):
        return "hardly moved"
    return "rose" if after > before else "fell"


def _many(n: int, one: str, more: str) -> str:
    return f"{n} {one if n == 1 else more}"
