"""Whether this company could run a plan, and what that would cost its own ledger."""

from __future__ import annotations

from ...blocks.examples import Examples
from ...blocks.pretrained.settings import PretrainedSettings
from ...blocks.size import parameters_of
from ...errors import FedblocksError, InputError, ProtocolError
from ...privacy.composition import Terms
from ...privacy.ledger_file import LedgerCopy, runs_of
from ...privacy.ledger_room import remaining
from ...privacy.secure_aggregation import Roster
from ...settings import Plan
from ..ceilings import check_ceilings, growth
from ..company import Company
from ..data.group_keys import records_beside_groups
from ..readiness import planned_parts, planned_terms
from ..units import units
from .data import classes_missing
from .findings import Findings
from .machine import available_memory

_BYTES = 4
_NOISY = 0.1


def check_plan(
    company: Company,
    plan: Plan,
    data: Examples | None,
    ledger: LedgerCopy | None,
    roster: Roster | None,
    findings: Findings,
) -> None:
    findings.note("plan", "plan", f"{plan.terms_digest().hex()} (for `plans` in policy.toml)")
    for broken in company.policy.broken(plan):
        mend = "ask the coordinator for another plan, or change the rule if you can accept that"
        findings.error("refused", f"policy.toml, {broken.rule}", str(broken), mend)
    least = plan.secure_aggregation.minimum_cohort
    if roster is not None and least > len(roster.members):
        what = f"needs {least} companies, the roster has {len(roster.members)}"
        findings.error("cohort", "plan", what, "ask for a plan for fewer, or for a roster with more")
    if data is not None:
        _data(plan, data, findings)
    if not _model_is_here(plan):
        return  # which the policy's rule says; what the plan costs and takes follows from the model
    if ledger is not None:
        _cost(company, plan, ledger, findings)
    _memory(plan, findings)


def _model_is_here(plan: Plan) -> bool:
    """Whether the plan's model can be built: a pretrained one has to be on this machine."""
    if isinstance(plan.model, PretrainedSettings):
        try:
            plan.model.check_sizes()
        except InputError:
            return False
    return True


def _data(plan: Plan, data: Examples, findings: Findings) -> None:
    try:
        data.check("data.npz", plan.model.kind)
    except InputError as error:
        mend = "import your data for this plan's model: fedblocks company import SOURCE HOME --model FILE --replace"
        findings.error("other_kind", "data.npz", str(error), mend)
        return
    classes = plan.model.kind.target_classes
    if plan.model.label_side == "targets" and classes is not None:
        missing = classes_missing(data, classes)
        if missing:
            named = ", ".join(map(str, missing[:8])) + (" and more" if len(missing) > 8 else "")
            what = f"has no example of {len(missing)} of {classes} classes ({named})"
            findings.warn(
                "classes", "data.npz", what, "check labels in the contract, unless you have none of these"
            )
    t = plan.training
    try:
        count = units(plan, data)
    except ProtocolError as error:
        how = "fedblocks company import SOURCE HOME --model FILE --contract FILE --replace"
        mend = f"import your data by a contract with group = {t.group!r}: {how}"
        findings.error("groups", "data.npz", str(error), mend)
        return
    if data.groups is not None and t.group is None:
        mend = f"ask for a plan with training.group = {data.groups.column!r}, or accept it"
        findings.warn("groups", "plan", records_beside_groups(data.groups), mend)
    named = "examples" if t.group is None else "groups"
    batch = t.sampling_rate * count
    if batch < 1:
        what = (
            f"sampling_rate={t.sampling_rate:g} of {count:,} {named} is {batch:.2g} a batch: most are empty"
        )
        findings.warn("sampling", "plan", what, "ask for a higher sampling rate, or bring more data")
    elif batch < _NOISY * t.expected_batch_size:
        what = f"a batch has {batch:.3g} of your {named}, its sum is divided by {t.expected_batch_size:g}"
        findings.warn(
            "sampling", "plan", what, "your part drowns in noise; ask for a smaller expected_batch_size"
        )


def _cost(company: Company, plan: Plan, ledger: LedgerCopy, findings: Findings) -> None:
    try:
        terms = planned_terms(plan)
        parts = planned_parts(plan)
        found = growth(ledger, parts, company.clock())
    except FedblocksError as error:
        findings.error("cost", "plan", str(error))
        return
    begun = runs_of(ledger.rows).get(plan.run)
    if begun is not None and not plan.secure_step and begun.terms != terms:
        what = f"run {plan.run!r} has begun with other terms: {begun.terms}"
        findings.error("other_terms", "plan", what, "other terms need a run of another name")
        return
    before, ceiling = ledger.spent.epsilon, company.policy.epsilon_ceiling
    after = before + found.to_come
    judged = f" and {parts[1][1].releases} evaluations" if len(parts) > 1 else ""
    what = f"{terms.releases} releases{judged}"
    said = f"{what} bring epsilon on this ledger from {before:.3g} to {after:.3g} of {ceiling:g}"
    if plan.private and not after <= ceiling:
        rounds = _rounds_left(plan, ledger, terms, ceiling)
        mend = (
            f"ask for at most {rounds} rounds or more noise, or raise epsilon_ceiling if you can accept that"
        )
        findings.error("budget", "plan", said, mend)
        return
    findings.note("cost", "plan", said)
    with findings.as_errors("budget", "plan", "ask for fewer rounds or more noise, or raise the ceiling"):
        check_ceilings(company.policy, ledger, parts, company.clock())


def _rounds_left(plan: Plan, ledger: LedgerCopy, terms: Terms, ceiling: float) -> int:
    t = plan.training
    a_round = t.releases(plan.model.blocks) // (t.rounds + t.reserve)
    return max(0, remaining(ledger, terms.event, ceiling, plan.run) // a_round - t.reserve)


def _memory(plan: Plan, findings: Findings) -> None:
    values = parameters_of(plan.model)
    needed = (
        _BYTES * 4 * values // plan.model.blocks
    )  # a block's weights, gradient and update, and those it is sent
    there = available_memory()
    if there is not None and needed > there:
        what = (
            f"training one of its blocks takes {needed >> 20:,} MB at least, {there >> 20:,} MB are available"
        )
        findings.error("memory", "plan", what, "use a machine with more memory, or ask for more blocks")
