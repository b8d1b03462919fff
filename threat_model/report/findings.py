"""The report's findings: sentences made from the run's data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...privacy.accounting import Guarantee
from ...server.own_account import planned
from .diagnosed import Diagnosed
from .facts import Facts, Utility
from .measures import Measure, change_interval, share_interval


@dataclass(frozen=True)
class Finding:
    """One or two sentences; `attention`: to be checked before the run continues."""

    topic: str
    text: str
    attention: bool = False


def largest_epsilon(facts: Facts) -> float:
    """The largest of the ledgers' epsilons; the plan's, if the ledgers are elsewhere.

    Where cohorts are drawn, no less than the plan's in any case: the company that is drawn most often, of which that
    is, may come late.
    """
    if not facts.private:
        return math.inf
    found = max((s.spent for s in facts.spending), default=0.0)
    if facts.plan.drawn is not None:
        return max(found, _planned(facts).epsilon)
    return found or _planned(facts).epsilon


def largest_against_company(facts: Facts) -> float:
    """As `largest_epsilon`, against a company that takes part: larger where shared noise tolerates no colluder."""
    if not facts.private:
        return math.inf
    found = max((s.spent_company for s in facts.spending), default=0.0)
    if facts.plan.drawn is not None:
        return max(found, _planned(facts).epsilon_against_company)
    return found or _planned(facts).epsilon_against_company


def _planned(facts: Facts) -> Guarantee:
    return planned(facts.plan, facts.settings.smallest_group)


def find(facts: Facts, diagnosed: Diagnosed | None) -> list[Finding]:
    """What the run is good for, and who was missing; privacy and attacks are the first page's."""
    found: list[Finding] = []
    if not facts.finished:
        done, planned = facts.rounds_done, facts.plan.training.rounds
        found.append(Finding("Unfinished", f"{done} of {planned} rounds have run so far.", True))
    if facts.utility is not None:
        found += _utility(facts.utility, facts)
    if diagnosed is not None:
        found += [Finding(*sentence) for sentence in diagnosed.sentences()]
    found.append(_attendance(facts))
    if facts.flagged:
        rounds = len({each["round"] for each in facts.flagged})
        text = (
            f"In {_many(rounds, 'round', 'rounds')} the model was better on public data without the sum of one group "
            "of companies: a sign of poisoned updates, or of private data unlike the public ones."
        )
        found.append(Finding("Influence", text, True))
    if facts.guarded:
        found.append(Finding("Guard", _guarded(facts.guarded), True))
    return found


def _guarded(looks: tuple[dict[str, Any], ...]) -> str:
    last = looks[-1]
    times = "not finite" if last["times"] is None else f"{last['times']:.3g} times the public model's"
    text = (
        f"In {_many(len(looks), 'round', 'rounds')} the public loss rose past the coordinator's limit of "
        f"{last['limit']:g} times the public model's; in round {last['round']} it was {times}"
    )
    if last["stopped"]:
        return f"{text}. That round was discarded and ended the run: the model is the one before it."
    return f"{text}. The guard marks such rounds and stops nothing (guard.public_loss)."


def _utility(utility: Utility, facts: Facts) -> list[Finding]:
    first, last, m = utility.first, utility.last, utility.measure
    before, after = first.judged[-1], last.judged[-1]
    text = (
        f"{m.title} on {utility.data} {_moved(m, before, after)} from {m.show(before)} (public model) "
        f"to {m.show(after)} after round {last.round}, a change of {m.change(after - before)}"
        f"{' points' if m.is_share else ''} ({m.direction}{_certainty(utility, after)})"
    )
    chance = _may_be_chance(utility, before, after)
    text += ". So few examples cannot tell that change from chance" if chance else ""
    text += f". {_price(utility, after)}" if facts.private and utility.private else "."
    found = [Finding("Utility", text, chance or not m.noticeably_better(before, after))]
    if not utility.private:
        text += " What it does for one company's own data is known to that company alone."
        found = [Finding("Utility", text, chance or not m.noticeably_better(before, after))]
    if last.public and _forgets(utility):
        text = (
            f"The model forgets public data: {m.words} there went from {m.show(first.public[-1])} to "
            f"{m.show(last.public[-1])}."
        )
        found.append(Finding("Forgetting", text, True))
    losing = utility.losing_blocks()
    if losing:
        lost = "; ".join(
            f"block {b} loses {m.amount(share)} (95% interval of the step {m.step(utility.step_interval(b))})"
            for b, share in losing
        )
        text = f"Part of the chain takes quality away, by more than chance: {lost}."
        best = utility.best_block
        if m.noticeably_worse(last.judged[best], after):
            text += (
                f" Stopping after block {best} would give {m.show(last.judged[best])} on the same "
                f"data instead of {m.show(after)}."
            )
        found.append(Finding("A block that hurts", text, True))
    return found


def _forgets(utility: Utility) -> bool:
    """By much, and where an interval is known by more than chance."""
    before, after, m = utility.first.public[-1], utility.last.public[-1], utility.measure
    change = m.change_interval(before, after, utility.public_examples)
    return m.forgotten(before, after) and (change is None or m.worsens(change))


def _certainty(utility: Utility, after: float) -> str:
    n = utility.judged_examples
    if not n:
        return ""
    if not utility.measure.is_share:
        return f"; {n:,} examples"
    low, high = share_interval(after, n)
    return f"; {n:,} examples, 95% interval {low:.1%} to {high:.1%}"


def _may_be_chance(utility: Utility, before: float, after: float) -> bool:
    """Whether so few held-out examples cannot tell the change from chance; known of shares alone."""
    n = utility.judged_examples
    if not n or not utility.measure.is_share:
        return False
    low, high = change_interval(before, after, n)
    return low <= 0 <= high


def _price(utility: Utility, after: float) -> str:
    plain, m = utility.non_private, utility.measure
    if plain is None:
        return (
            "What the noise costs was not measured: fedblocks simulate --with-reference adds the same run "
            "without noise."
        )
    n = utility.judged_examples
    if m.surely_worse(plain, after, n):
        cost = f"the noise cost {m.amount(plain - after)}"
    elif m.surely_better(plain, after, n):
        cost = f"{m.amount(plain - after)} worse, so the noise cost nothing"
    else:
        cost = "no difference beyond chance"
    return f"The same run without noise reaches {m.show(plain)}: {cost}."


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


def _moved(m: Measure, before: float, after: float) -> str:
    if not m.noticeably_better(before, after) and not m.noticeably_worse(before, after):
        return "hardly moved"
    return "rose" if after > before else "fell"


def _many(n: int, one: str, more: str) -> str:
    return f"{n} {one if n == 1 else more}"
