"""The ledger and the record of decisions beside it: whole, of this company, and with room. Nothing is written."""

from __future__ import annotations

import shlex
from pathlib import Path

from ...errors import FedblocksError
from ...privacy.ledger_file import LedgerCopy, check_seen, read_ledger
from ..company import Company
from ..decisions import DECISIONS_FILE, LEDGER_FILE, verify
from .findings import Findings

_NEAR = 0.9
_SECONDS = 300.0


def check_ledger(company: Company, findings: Findings) -> LedgerCopy | None:
    """The ledger as it is now, if it can be used."""
    path, home = company.home / LEDGER_FILE, shlex.quote(str(company.home))
    if not path.exists():
        mend = f"make the first one: fedblocks ledger create {home}; restore a lost one from a backup"
        findings.error("no_ledger", path, "no such file", mend)
        return None
    try:
        ledger = read_ledger(path)
        check_seen(ledger, *company.steps.seen())
    except FedblocksError as error:
        findings.error("bad_ledger", path, str(error))
        return None
    if not _own(company, ledger, path, findings):
        return None
    _record(company, findings)
    _room(company, ledger, path, findings)
    last = max((row.time for row in ledger.rows), default=0.0)
    if last > company.clock() + _SECONDS:
        what = f"its last row is {(last - company.clock()) / 60:,.0f} minutes ahead of this machine's clock"
        findings.error(
            "clock", path, what, "set the clock, as by NTP: hours, days and years of the policy go by it"
        )
    return ledger


def _own(company: Company, ledger: LedgerCopy, path: Path, findings: Findings) -> bool:
    policy, header = company.policy, ledger.header
    for rule, found, wanted in (
        ("company", header.company, policy.company),
        ("delta", header.delta, policy.delta),
        ("composition", header.composition, policy.composition if header.pinned else header.composition),
    ):
        if found != wanted:
            what = f"was created with {rule}={found!r}, policy.toml says {wanted!r}"
            mend = f"write {rule} = {_toml(found)} in policy.toml; what a ledger counts is fixed when it is created"
            findings.error("other_ledger", path, what, mend)
            return False
    return True


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"


def _record(company: Company, findings: Findings) -> None:
    if not (company.home / DECISIONS_FILE).exists() and not company.steps.seen_log().lines:
        return  # none has begun, as in a home of an older version
    try:
        verify(company.home)
    except FedblocksError as error:
        findings.error("bad_record", company.home / DECISIONS_FILE, str(error))


def _room(company: Company, ledger: LedgerCopy, path: Path, findings: Findings) -> None:
    spent, ceiling = ledger.spent.epsilon, company.policy.epsilon_ceiling
    said = f"epsilon {spent:.3g} of {ceiling:g} is spent"
    mend = "raise epsilon_ceiling in policy.toml if you can accept that, or take part in no further run"
    if not spent < ceiling and ceiling > 0:
        findings.error("no_room", path, f"{said}: no further run fits", mend)
    elif ceiling > 0 and spent > _NEAR * ceiling:
        findings.warn("little_room", path, said, mend)
    else:
        findings.note("spent", path, said)
