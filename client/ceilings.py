"""The ceilings that a policy sets on one run and on a year, beside the ledger's own ceiling on everything.

What is compared is how much the ledger's epsilon grows: by the run's releases, those made and those to come, or
within 365 days. The guarantee is that of the ledger and its ceiling; these keep it from being used up at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BudgetExceeded
from ..privacy.composition import RUNS, Run, Terms
from ..privacy.ledger_file import LedgerCopy, runs_of
from .policy import Policy

YEAR = 365 * 86400.0


@dataclass(frozen=True)
class Growth:
    """Epsilon that the ledger has gained by the run so far, gains by what is left of it, and gained within a year."""

    by_run: float
    to_come: float
    in_a_year: float


def growth(ledger: LedgerCopy, parts: Sequence[tuple[str, Terms]], now: float) -> Growth:
    """`parts`: the run's training, and its evaluations if it has any, as runs of a ledger: name and terms. The terms
    count where a part has not begun; else those to which it is pinned."""
    rule, runs = ledger.composition, runs_of(ledger.rows)
    before = after = rule.epsilon(list(runs.values()))
    for name, terms in parts:
        begun = runs.get(name)
        others = [each for other, each in runs.items() if other != name]
        if begun is None:
            after = rule.further(after, others, terms, terms.releases)
        elif rule.name != RUNS:  # else the whole run was charged at its first release
            after = rule.epsilon([*others, Run(begun.terms, begun.terms.releases)])
        kept = terms if begun is None else begun.terms
        runs[name] = Run(kept, kept.releases)

    def gained(rows: list[tuple[float, float]]) -> float:
        return sum(late - early for early, late in rows)

    names = {name for name, _ in parts}
    made = [(row.epsilon_before, row.epsilon_after) for row in ledger.rows if row.run in names]
    recent = [(row.epsilon_before, row.epsilon_after) for row in ledger.rows if row.time > now - YEAR]
    return Growth(gained(made), after - before, gained(recent))


def check_ceilings(
    policy: Policy, ledger: LedgerCopy, parts: Sequence[tuple[str, Terms]], now: float
) -> None:
    """BudgetExceeded if the run would pass the policy's ceiling for a run, or for the 365 days up to `now`.

    `parts`: as for `growth`.
    """
    found, run = growth(ledger, parts, now), parts[0][0]
    # Written so that NaN, as of infinite costs, is refused too.
    if (
        policy.epsilon_ceiling_run is not None
        and not found.by_run + found.to_come <= policy.epsilon_ceiling_run
    ):
        cost = found.by_run + found.to_come
        raise BudgetExceeded(
            f"run {run!r} costs {cost:.3g}, epsilon_ceiling_run={policy.epsilon_ceiling_run:g}"
        )
    if (
        policy.epsilon_ceiling_year is not None
        and not found.in_a_year + found.to_come <= policy.epsilon_ceiling_year
    ):
        text = f"{found.in_a_year:.3g} were spent within 365 days and run {run!r} adds {found.to_come:.3g}"
        raise BudgetExceeded(f"{text}, epsilon_ceiling_year={policy.epsilon_ceiling_year:g}")
