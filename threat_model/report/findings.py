"""The report's first page in words: what the numbers say, nothing that they do not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...privacy.accounting import round_up
from .audited import Audited
from .facts import Facts, Utility, interval
from .spending import planned_epsilon

# A change of accuracy smaller than this is called none.
_NOTICEABLE = 0.005
_FORGETTING = 0.05


@dataclass(frozen=True)
class Finding:
    """One sentence or two; `attention` where somebody should look before going on."""

    topic: str
    text: str
    attention: bool = False


def largest_epsilon(facts: Facts) -> float:
    """The largest of the ledgers' epsilons; of the plan, where the ledgers are elsewhere."""
    if not facts.private:
        return math.inf
    return max((s.spent for s in facts.spending), default=0.0) or planned_epsilon(facts.plan)


def find(facts: Facts, audit: Audited | None) -> list[Finding]:
    """In order of what a privacy officer asks first."""
    found: list[Finding] = []
    if not facts.finished:
        done, planned = facts.rounds_done, facts.plan.training.rounds
        found.append(Finding("Unfinished", f"{done} of {planned} rounds have run so far.", True))
    if facts.utility is not None:
        found += _utility(facts.utility, facts)
    found.append(_epsilon(facts))
    found.append(_attendance(facts))
    found += _audit(audit)
    return found


def points(change: float) -> str:
    """A change of a share in points, with a sign."""
    return f"{100 * change:+.1f}".replace("-", "−")


def delta(value: float) -> str:
    """1e-5 rather than 1e-05."""
    return f"{value:g}".replace("e-0", "e-")


def _utility(utility: Utility, facts: Facts) -> list[Finding]:
    first, last, n = utility.first, utility.last, utility.heldout_examples
    before, after = first.heldout[-1], last.heldout[-1]
    text = (
        f"Accuracy on held-out private data {_moved(before, after)} from {before:.1%} (public model) to "
        f"{after:.1%} after round {last.round}, a change of {points(after - before)} points"
    )
    if n:
        low, high = interval(after, n)
        text += f" ({n:,} examples, 95% interval {low:.1%} to {high:.1%})"
    text += f". {_price(utility, after)}" if facts.private else "."
    found = [Finding("Utility", text, after < before + _NOTICEABLE)]
    if last.public and first.public[-1] - last.public[-1] > _FORGETTING:
        text = (
            f"The model forgets public data: accuracy there fell from {first.public[-1]:.1%} to "
            f"{last.public[-1]:.1%}."
        )
        found.append(Finding("Forgetting", text, True))
    losing = utility.losing_blocks()
    if losing:
        lost = "; ".join(f"block {b} loses {100 * share:.1f} points" for b, share in losing)
        best = max(range(len(last.heldout)), key=lambda b: last.heldout[b])
        text = f"Part of the chain takes accuracy away: {lost}."
        if last.heldout[best] > after + _NOTICEABLE:
            text += (
                f" Stopping after block {best} would give {last.heldout[best]:.1%} on the same held-out data "
                f"instead of {after:.1%}."
            )
        found.append(Finding("A block that hurts", text, True))
    return found


def _price(utility: Utility, after: float) -> str:
    plain = utility.non_private
    if plain is None:
        return (
            "What the noise costs was not measured: fedblocks simulate --with-reference adds the same run "
            "without noise."
        )
    gap = 100 * (plain - after)
    if abs(gap) < 100 * _NOTICEABLE:
        cost = "no noticeable difference"
    elif gap > 0:
        cost = f"the noise cost {gap:.1f} points of accuracy"
    else:
        cost = f"{-gap:.1f} points less, so the noise cost nothing"
    return f"The same run without noise reaches {plain:.1%}: {cost}."


def _epsilon(facts: Facts) -> Finding:
    if not facts.private:
        text = (
            "No differential privacy: nothing bounds what the opened sums, or the model, tell about one "
            "example. Secure aggregation alone is no such bound."
        )
        return Finding("Privacy", text, True)
    if not facts.spending:
        text = (
            "The companies' ledgers are not in this folder. The whole plan costs a company epsilon "
            f"{round_up(planned_epsilon(facts.plan))} at delta {delta(facts.plan.delta)}."
        )
        return Finding("Privacy", text)
    top = max(facts.spending, key=lambda s: s.spent)
    alike = len({s.spent for s in facts.spending}) == 1 < len(facts.spending)
    whose = f"all {len(facts.spending)} companies alike" if alike else top.company
    text = (
        f"The largest epsilon spent is {round_up(top.spent)} ({whose}), under a ceiling of {top.ceiling:g}, "
        f"for one example of one company, at delta {delta(top.delta)}."
    )
    if top.spent > top.ceiling:
        text += " That is above the ceiling that this company's policy now sets."
    return Finding("Privacy", text, top.spent > top.ceiling)


def _attendance(facts: Facts) -> Finding:
    if not facts.absences and not facts.aborted:
        text = f"No company was missing and no round was aborted in {facts.rounds_done} rounds."
        return Finding("Dropouts", text)
    companies, times = len({a.company for a in facts.absences}), len(facts.absences)
    text = (
        f"{_many(companies, 'company', 'companies')} dropped out {_many(times, 'time', 'times')} in "
        f"{facts.rounds_done} rounds; {_many(len(facts.aborted), 'round was', 'rounds were')} aborted"
        f"{', where nothing was opened' if facts.aborted else ''}."
    )
    if facts.unused_charges:
        text += (
            f" {_many(facts.unused_charges, 'release was', 'releases were')} charged to a ledger but reached "
            "no sum: privacy spent for nothing."
        )
    return Finding("Dropouts", text, bool(facts.aborted))


def _audit(audit: Audited | None) -> list[Finding]:
    if audit is None:
        text = "The releases of this run have not been attacked yet, so nothing is known about what leaks."
        return [Finding("Audit", text, True)]
    return [Finding(*sentence) for sentence in audit.sentences()]


def _moved(before: float, after: float) -> str:
    if after > before + _NOTICEABLE:
        return "rose"
    return "fell" if after < before - _NOTICEABLE else "hardly moved"


def _many(n: int, one: str, more: str) -> str:
    return f"{n} {one if n == 1 else more}"
