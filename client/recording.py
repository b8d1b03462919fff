"""What the app puts on the company's record of decisions, and in which words.

The text of an error and values of the data have no place there: a refusal is a rule's name or a fixed code, what
leaves is its size and digest.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from ..errors import BudgetExceeded, FedblocksError, LedgerError, PolicyRefusal, ProtocolError
from ..privacy.secure_aggregation import Session
from ..protocol.messages import TRAIN, UNMASK
from ..protocol.release import block_label
from ..settings import Plan
from .company import Company
from .decision_chain import Value

# Codes of ProtocolError that a rule of the policy, or the company's machine, stands behind.
_BY_POLICY = {"closed": "hours", "too_many": "too_many"}
_BY_PERSON = {"denied"}
_BY_MACHINE = {"no_data", "data_changed", "no_room", "busy", "no_data_plane"}
_SECONDS = 60.0
_last: dict[str, tuple[tuple[str, str, str, str], float]] = {}
_asked: dict[str, tuple[bytes, float]] = {}


def record_asked(company: Company, plan: Plan) -> None:
    """A coordinator asks to join; again and again while a person has not decided, which is written once."""
    home, digest, now = str(company.home), plan.digest(), company.clock()
    before = _asked.get(home)
    _asked[home] = (digest, now)
    if before is not None and before[0] == digest and 0 <= now - before[1] < _SECONDS:
        return
    company.decisions.write("asked", run=plan.run, plan=plan.digest().hex(), terms=plan.terms_digest().hex())


def record_joined(company: Company, run: str, data: bytes) -> None:
    """The company's rules allow the run, which begins with data of this digest."""
    company.decisions.write("joined", run=run, by="policy", data=data.hex())
    _asked.pop(str(company.home), None)


def record_trained(company: Company, session: Session, masked: npt.NDArray[np.uint8]) -> None:
    """A block was trained, and its masked update leaves."""
    sent = _sent(session, TRAIN, masked.tobytes())
    company.decisions.write_all(("trained", _about(session)), ("sent", sent))


def record_answered(company: Company, session: Session, shares: bytes) -> None:
    """The shares that open a round's sum leave."""
    company.decisions.write_all(("sent", _sent(session, UNMASK, shares)))


def _about(session: Session) -> dict[str, Value]:
    return {"run": session.run, "round": session.round, "block": block_label(session.label)}


def _sent(session: Session, message: str, content: bytes) -> dict[str, Value]:
    digest = hashlib.sha256(content).hexdigest()
    return _about(session) | {"message": message, "bytes": len(content), "digest": digest}


def record_refusal(company: Company, run: str, message: str, error: Exception) -> None:
    """Put a refusal on record. The same one again within a minute is not: a sender could fill the disk with it."""
    by, why = reason_of(error)
    if why == "pending":  # was asked, and nobody has decided
        return
    refused, now = (run, message, by, why), company.clock()
    before = _last.get(str(company.home))
    if before is not None and before[0] == refused and 0 <= now - before[1] < _SECONDS:
        return
    company.decisions.write("refused", run=run, message=message, by=by, why=why)
    _asked.pop(str(company.home), None)
    _last[str(company.home)] = (refused, now)


def reason_of(error: BaseException) -> tuple[str, str]:
    """(policy, ledger, person, protocol or machine; the rule or the code)."""
    if isinstance(error, PolicyRefusal):
        return "policy", error.rule
    if isinstance(error, BudgetExceeded):
        return "ledger", "budget"
    if isinstance(error, LedgerError):
        return "ledger", "ledger"
    if isinstance(error, ProtocolError):
        if error.code in _BY_POLICY:
            return "policy", _BY_POLICY[error.code]
        by = "person" if error.code in _BY_PERSON else "machine" if error.code in _BY_MACHINE else "protocol"
        return by, error.code
    if error.__cause__ is not None:  # a join's refusal is one code for whatever was behind it
        return reason_of(error.__cause__)
    return "machine", error.code if isinstance(error, FedblocksError) else FedblocksError.code
