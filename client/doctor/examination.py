"""The whole examination, part after part."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from ...errors import FedblocksError
from ...protocol import private_file
from ...settings import Plan
from ..company import Company
from ..policy import Policy, load_policy
from .data import check_data
from .findings import Finding, Findings
from .keys import check_keys
from .ledger import check_ledger
from .machine import check_machine
from .network import check_network
from .plan import check_plan
from .rules import check_rules

# With these no connection can be tried.
_KEYS = {"no_data_plane", "no_certificate", "bad_certificate", "other_key"}


def examine(
    home: Path,
    plan: Plan | None = None,
    *,
    fingerprint: str | None = None,
    connect: bool = True,
    clock: Callable[[], float] = time.time,
) -> list[Finding]:
    """Everything that is found in the home, part after part.

    `plan`: also whether this company could run it, and what it would cost its ledger. `fingerprint`: that of the
    provisioner, as it was read out over the phone. `connect`: whether the coordinator's address is tried.
    """
    findings = Findings()
    quoted = shlex.quote(str(home))
    if not home.is_dir():
        mend = f"make one: fedblocks company init {quoted} --name NAME"
        findings.error("no_home", home, "no such folder", mend)
        return findings.found
    for fault in private_file.faults(home):
        findings.error("open_file", "", fault)
    policy = _policy(home, findings)
    roster = check_keys(home, policy, findings, fingerprint, datetime.fromtimestamp(clock(), UTC))
    if policy is not None:
        company = Company(home, policy, clock)
        check_rules(policy, roster, findings)
        data = check_data(company, findings)
        ledger = check_ledger(company, findings)
        _requests(company, findings)
        check_machine(company, findings)
        if plan is not None:
            check_plan(company, plan, data, ledger, roster, findings)
    if connect and not _KEYS & {finding.name for finding in findings.found}:
        check_network(home, findings)
    return findings.found


def _requests(company: Company, findings: Findings) -> None:
    waiting = [each.run for each in company.requests.all() if each.decision == "pending"]
    if waiting:
        mend = (
            f"decide: fedblocks agent approve {shlex.quote(str(company.home))} RUN, or fedblocks agent deny"
        )
        findings.warn("pending", "", f"waiting for a person of this company: {', '.join(waiting)}", mend)


def _policy(home: Path, findings: Findings) -> Policy | None:
    path = home / "policy.toml"
    if not path.is_file():
        mend = f"make one: fedblocks company init {shlex.quote(str(home))} --name NAME"
        findings.error("no_policy", path, "no such file", mend)
        return None
    try:
        policy = load_policy(path)
    except FedblocksError as error:
        findings.error("bad_policy", path, str(error), "mend this line of the file")
        return None
    if policy.simulation_seed is not None:
        what = "whoever knows simulation_seed can subtract this company's noise"
        findings.error("simulation_seed", path, what, "remove the line")
    return policy
