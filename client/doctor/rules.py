"""Rules of a policy that contradict each other, the roster or the machine: with them no plan can be admitted."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...privacy.secure_aggregation import Roster
from ...settings import MOST_NOISE
from ..policy import Policy
from .findings import Findings

_LARGE_DELTA = 1e-3


def check_rules(policy: Policy, roster: Roster | None, findings: Findings) -> None:
    """`roster`: that of the home, if it can be used."""

    def error(rule: str, what: str, mend: str) -> None:
        findings.error("contradiction", f"policy.toml, {rule}", what, mend)

    def warn(rule: str, what: str, mend: str) -> None:
        findings.warn("odd_rule", f"policy.toml, {rule}", what, mend)

    if policy.epsilon_ceiling == 0 and not policy.i_accept_no_dp:
        what = "no release with noise fits under 0, and i_accept_no_dp is false: every plan is refused"
        error("epsilon_ceiling", what, "raise it to the epsilon that you can accept")
    for rule in ("epsilon_ceiling_run", "epsilon_ceiling_year"):
        value = getattr(policy, rule)
        if value == 0 and not policy.i_accept_no_dp:
            error(rule, "no release with noise fits under 0", "raise it, or remove the line")
        elif value is not None and value > policy.epsilon_ceiling:
            what = f"{value:g} is above epsilon_ceiling={policy.epsilon_ceiling:g}, so it limits nothing"
            warn(rule, what, "lower it")
    if policy.minimum_noise_multiplier > MOST_NOISE:
        what = f"no plan can have more than {MOST_NOISE:g}"
        error("minimum_noise_multiplier", what, "a usual value is 0.3 to 5")
    if policy.least_colluders >= policy.minimum_cohort and roster is None:
        what = (
            f"{policy.least_colluders} colluders need a cohort of more companies than {policy.minimum_cohort}"
        )
        warn("least_colluders", what, "raise minimum_cohort with it")
    if policy.delta >= _LARGE_DELTA:
        what = f"delta={policy.delta:g}: an example may be exposed outright with such a chance"
        warn("delta", what, "choose it well below 1 / your number of examples")
    if policy.most_new_plans > policy.most_joins:
        warn("most_new_plans", "is above most_joins, so it limits nothing", "lower it")
    if roster is not None:
        _against_roster(policy, len(roster.members), error)
    _device(policy, error)


def _against_roster(policy: Policy, companies: int, error: Callable[[str, str, str], None]) -> None:
    if policy.minimum_cohort > companies:
        what = (
            f"{policy.minimum_cohort} companies are asked for, the roster has {companies}: no sum can be made"
        )
        error("minimum_cohort", what, "lower it (3 at least), or wait for a roster with more companies")
    if policy.least_colluders >= companies:
        what = (
            f"{policy.least_colluders} colluders of {companies} companies in the roster: nobody would be left"
        )
        error("least_colluders", what, "lower it to less than a third of the companies")


def _device(policy: Policy, error: Callable[[str, str, str], None]) -> None:
    try:
        torch.zeros(1, device=policy.device).add(1).item()
    except Exception as fault:  # each of PyTorch's devices has its own way to be missing
        reason = (str(fault) or type(fault).__name__).splitlines()[0][:80]
        error(
            "device",
            f"{policy.device!r} is not available here ({reason})",
            'write "cpu", or install its driver',
        )
