"""What a coordinator can say of privacy by itself: from its plan and its rounds, since no ledger lies with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ..privacy.accounting import Guarantee, guarantee, shown
from ..privacy.adversaries import seen_by_company
from ..privacy.composition import Terms, run_epsilon
from ..privacy.events import Event
from ..protocol.evaluation import evaluation_epsilon, whole_evaluation
from ..protocol.ledger_statement import STATEMENTS, LedgerStatement, read_statements
from ..protocol.release import planned_size, run_terms
from ..settings import Plan
from .run_folder import RunFolder


@dataclass(frozen=True)
class OwnAccount:
    """One company's releases in a run as its coordinator knows them; the company's own ledger decides.

    `summed`: releases in an opened sum; `most`: those that it may have made, one a round and block. `epsilon` is of
    `most` releases, as the first run of a ledger: an upper limit, unless rounds were begun anew and charged again.
    The whole plan's is one in any case, since a ledger is pinned to the plan's number of releases.
    `statement`: what the company itself says, if it does.
    """

    company: str
    summed: int
    most: int
    absent: int
    epsilon: float
    epsilon_against_company: float
    statement: LedgerStatement | None = None

    @property
    def out_of_date(self) -> bool:
        """Whether the statement tells of fewer releases than the company has in opened sums; each was charged."""
        return self.statement is not None and self.statement.releases < self.summed


def own_accounts(run: RunFolder) -> list[OwnAccount]:
    """The companies of the roster, and any that took part, by name.

    Raises: InputError where the roster cannot be read; RunError for a statement that is not of this run and company.
    """
    plan, rows = run.plan(), [row for row in run.metrics() if row["round"] > 0]
    names = {name for row in rows for name in (*row["survivors"], *row["absent"])}
    said: dict[str, LedgerStatement] = {}
    if run.roster_file.is_file():
        roster = run.roster()
        names |= set(roster.members)
        said = read_statements(run.path / STATEMENTS, plan.run, roster)
    tasks = [task for row in rows for task in row.get("tasks", (row,))]
    summed = Counter(name for task in tasks for name in task["survivors"])
    absent = Counter(name for row in rows for name in row["absent"])
    most = Counter(name for task in tasks for name in names if _may_have_trained(name, task))
    # Charged whole by a company's first, which may have been asked for in any round that had one.
    judged = plan_evaluations(plan) if any("evaluation" in row for row in rows) else None
    cost = _Costs(plan, run.settings().smallest_group, judged)
    return [
        OwnAccount(name, summed[name], most[name], absent[name], *cost.of(most[name]), said.get(name))
        for name in sorted(names)
    ]


def _may_have_trained(company: str, task: Mapping[str, Any]) -> bool:
    """Whether the company can have been charged. A task that failed does not tell who had answered, nor one that was
    begun anew who had trained before."""
    return task["status"] != "done" or company in task["survivors"] or company in task["absent"]


class _Costs:
    """Epsilons of so many releases of a plan."""

    def __init__(self, plan: Plan, companies: int, judged: Event | None) -> None:
        self._delta, self._terms = plan.delta, _terms(plan, companies)
        self._judged = evaluation_epsilon(judged, plan.delta), _against_company(judged, plan.delta)
        self.of = cache(self._of)

    def _of(self, releases: int) -> tuple[float, float]:
        if releases == 0:
            return 0.0, 0.0
        event = self._terms.event.times(releases)
        against_company = run_epsilon(seen_by_company(event), self._delta) + self._judged[1]
        return (found := run_epsilon(event, self._delta) + self._judged[0]), max(found, against_company)


def plan_evaluations(plan: Plan) -> Event | None:
    """All evaluations of the plan, as one event."""
    return whole_evaluation(plan.evaluation, plan.model, plan, plan.training.rounds)


def _against_company(judged: Event | None, delta: float) -> float:
    return evaluation_epsilon(None if judged is None else seen_by_company(judged), delta)


def _terms(plan: Plan, companies: int) -> Terms:
    return run_terms(plan, planned_size(plan), companies)


def planned(plan: Plan, companies: int) -> Guarantee:
    """The cost of the whole plan as a ledger's first runs, its training and its evaluations, in sums of `companies`
    companies."""
    whole, judged, delta = _terms(plan, companies).whole, plan_evaluations(plan), plan.delta
    return replace(
        guarantee([whole], delta),
        epsilon=run_epsilon(whole, delta) + evaluation_epsilon(judged, delta),
        epsilon_against_company=run_epsilon(seen_by_company(whole), delta) + _against_company(judged, delta),
    )


def guarantee_sentence(plan: Plan, companies: int, simulated: bool) -> str:
    """What the whole plan promises, in one sentence; of a `simulated` run, why it promises nothing."""
    if not plan.private:
        return (
            "None: the companies' updates were summed without noise, so no epsilon holds, and nothing bounds what "
            "the model tells about a single example."
        )
    found = planned(plan, companies)
    company = ""
    if found.epsilon_against_company > found.epsilon:
        company = f" (against a company that takes part: epsilon = {shown(found.epsilon_against_company)})"
    promise = (
        f"epsilon = {shown(found.epsilon)} at delta = {found.delta:g} for {plan.training.unit or 'one example'} of "
        f"one company (add or remove one {'group' if plan.training.group else 'example'}; {found.mechanism}) against "
        f"{found.against}{company}"
    )
    if simulated:
        return (
            "None, since it was made in a simulation, whose noise follows from a seed; its plan, run by real "
            f"companies, would keep each company's releases to {promise}."
        )
    return (
        f"Each company's releases of the whole run are differentially private with {promise}, where the run is the "
        "first of that company's ledger."
    )
