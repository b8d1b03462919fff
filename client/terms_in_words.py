"""A plan in plain language for the people who decide about it, with what it would cost this company's ledger."""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import Any

from ..errors import FedblocksError
from ..privacy.accounting import finite
from ..privacy.secure_aggregation import lowest_threshold
from ..settings import Plan
from .approvals import Request
from .company import Company
from .readiness import planned_parts


def projected(company: Company, plan: Plan) -> dict[str, Any]:
    """The figures: epsilon of this ledger now and after the whole run, and what would refuse it, or none.

    An epsilon is for adding or removing one example of this company, at the policy's delta.
    """
    found: dict[str, Any] = {
        "rounds": plan.training.rounds,
        "releases": plan.most_releases,
        "blocks": plan.model.blocks,
        "minimum_cohort": plan.secure_aggregation.minimum_cohort,
        "noise_multiplier": plan.noise_multiplier,
        "evaluations": 0 if plan.evaluation is None else plan.evaluation.rounds(plan.training.rounds),
        "delta": company.policy.delta,
        "ceiling": company.policy.epsilon_ceiling,
        "epsilon_spent": None,
        "epsilon_after": None,
        "refused": None,
    }
    try:
        with company.ledger() as ledger:
            found["epsilon_spent"] = finite(ledger.spent().epsilon)
            company.policy.check(plan)
            found["epsilon_after"] = finite(ledger.check_plans(planned_parts(plan)))
    except FedblocksError as error:
        found["refused"] = str(error)
    return found


def _blocks(plan: Plan) -> str:
    if plan.training.blocks is not None:
        return f"block {', '.join(map(str, plan.trained_blocks))} of {plan.model.blocks} (from 0)"
    return f"{plan.model.blocks} blocks"


def described(company: Company, request: Request) -> list[str]:
    """What a coordinator asks for, a line a fact."""
    plan, costs = request.offered, projected(company, request.offered)
    t, n = plan.training, plan.secure_aggregation.minimum_cohort
    asked = datetime.fromtimestamp(request.asked).astimezone().isoformat(timespec="seconds")
    assignment = {
        "sequential": "all companies train one block a round",
        "parallel": "groups of companies train different blocks at once",
        "all": "every company trains every block in every round",
    }[t.assignment]
    steps = f"each after {t.local_steps} local steps on {t.sampling_rate:.4g} of its examples"
    if t.group is not None:
        steps = f"each after {t.local_steps} local steps on {t.sampling_rate:.4g} of its groups, "
        steps += f"{t.records_per_group} records of each"
    if t.proximal > 0:
        steps += f", pulled back to the round's start (mu {t.proximal:g})"
    opened = f"each is opened only if at least {_threshold(plan, n)} of {n} take part to its end"
    lines = [
        f"Run {request.run!r} (plan {request.digest[:12]}), asked for since {asked}:",
        f"  trains     {plan.model.family}, {_blocks(plan)}, {t.rounds} rounds; {assignment}",
        f"  releases   {costs['releases']} of this company, {steps}",
        f"  privacy    {_privacy(plan)}",
        f"  of         {plan.unit_words}",
        f"  sums       of {n} companies or more; {opened}",
        "  leaves     a masked, clipped update of a block for each release, readable only in a sum; signed keys and",
        "             shares; no example, no count, no metric" + (" but these:" if plan.evaluation else ""),
    ]
    if plan.evaluation is not None:
        noise = plan.evaluation.noise_multiplier
        lines += [
            f"  judges     the model {costs['evaluations']} times on examples that this company holds out: their",
            f"             number and the sum of their scores leave with noise {noise:g}, readable only in a sum",
        ]
    if costs["refused"] is not None:
        lines.append(f"  would be REFUSED by this company's own rules: {costs['refused']}")
    else:
        spent, after = _epsilon(costs["epsilon_spent"]), _epsilon(costs["epsilon_after"])
        lines.append(
            f"  epsilon    {spent} spent now, {after} after this run, of {costs['ceiling']:g} (delta "
            f"{costs['delta']:g}; adding or removing {plan.training.unit or 'one example'} of {company.name})"
        )
    # By its digest: the name is the coordinator's, and a shell may take it for more than a name.
    meant = f"{shlex.quote(str(company.home))} {request.digest[:12]}"
    lines.append(f"  decide     fedblocks agent approve {meant}")
    lines.append(f"             fedblocks agent deny {meant} --why REASON")
    return lines


def _privacy(plan: Plan) -> str:
    if not plan.private:
        return "NONE: no noise is added"
    of = "an example" if plan.training.group is None else "a group"
    clip = f"clipped to {plan.max_grad_norm:g} {of}, noise multiplier {plan.noise_multiplier:g}"
    if plan.secure_step:
        return (
            f"{clip}; companies SHARE one noise: it protects while at most {plan.dropouts} are missing and "
            f"{plan.colluders} side with the coordinator"
        )
    return f"{clip}; this company's own noise suffices, whoever sides with the coordinator"


def _threshold(plan: Plan, companies: int) -> int:
    return max(plan.threshold(companies) or 0, lowest_threshold(companies, plan.colluders))


def _epsilon(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4g}"
