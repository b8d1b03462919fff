"""What a coordinator can say of privacy by itself: from its plan alone, since no ledger lies with it."""

from __future__ import annotations

from dataclasses import replace

from ..blocks import build_model
from ..privacy.accounting import Guarantee, guarantee, shown
from ..privacy.adversaries import seen_by_company
from ..privacy.composition import run_epsilon
from ..protocol.release import block_size, run_terms
from ..settings import Plan


def planned(plan: Plan, companies: int) -> Guarantee:
    """The cost of the whole plan as a ledger's first run, in sums of `companies` companies."""
    # A block's size is known from a model only.
    whole = run_terms(
        plan, block_size(build_model(plan.model, plan.noise, 0), 0, plan.training), companies
    ).whole
    return replace(
        guarantee([whole], plan.delta),
        epsilon=run_epsilon(whole, plan.delta),
        epsilon_against_company=run_epsilon(seen_by_company(whole), plan.delta),
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
        f"epsilon = {shown(found.epsilon)} at delta = {found.delta:g} for one example of one company (add or remove "
        f"one example; {found.mechanism}) against {found.against}{company}"
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
