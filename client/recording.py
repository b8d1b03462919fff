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
from ..protocol.messages import EVALUATE, TRAIN, UNMASK
from ..protocol.release import block_label
from ..settings import Plan
from .company import Company
from .decision_chain import Value

# Codes of ProtocolError that a rule of the policy, or the company's machine, stands behind.
_BY_POLICY = {"closed": "hours", "too_many": "too_many"}
_BY_PERSON = {"denied"}
_BY_MACHINE = {"no_data", "data_changed", "no_room", "busy", "no_data_plane"}
_SECONDS = 60.0
# Lines about messages that led to nothing, within that time: a sender could fill the disk with them.
MOST_LINES = 30
_FLOOD = ("flood",)
# What was told lately of each home, and when.
_told: dict[str, dict[tuple[str, ...], float]] = {}


def record_asked(company: Company, plan: Plan) -> None:
    """A coordinator asks to join; again and again while a person has not decided, which is written once."""
    asked = _asked(plan)
    if _is_news(company, asked, again=False):
        digests = {"plan": plan.digest().hex(), "terms": plan.terms_digest().hex()}
        company.decisions.write("asked", run=plan.run, **digests)


def record_joined(company: Company, run: str, data: bytes) -> None:
    """The company's rules allow the run, which begins with data of this digest."""
    company.decisions.write("joined", run=run, by="policy", data=data.hex())
    _forget_asked(company, run)


def record_trained(company: Company, session: Session, masked: npt.NDArray[np.uint8]) -> None:
    """A block was trained, and its masked update leaves."""
    sent = _sent(session, TRAIN, masked.tobytes())
    company.decisions.write_all(("trained", _about(session)), ("sent", sent))


def record_evaluated(company: Company, session: Session, masked: npt.NDArray[np.uint8]) -> None:
    """A model was judged on held-out examples, and the masked sums leave."""
    sent = _sent(session, EVALUATE, masked.tobytes())
    company.decisions.write_all(("evaluated", _about(session)), ("sent", sent))


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
    if _is_news(company, (run, message, by, why), again=True):
        company.decisions.write("refused", run=run, message=message, by=by, why=why)


def _is_news(company: Company, what: tuple[str, ...], *, again: bool) -> bool:
    """Whether to write it: it was not within a minute, nor too much else. `again`: once a minute, however often it
    happens; else only after a minute without it."""
    now, home = company.clock(), str(company.home)
    lately = {each: when for each, when in _told.get(home, {}).items() if 0 <= now - when < _SECONDS}
    _told[home] = lately
    news = what not in lately
    if news and len(lately) >= MOST_LINES:
        if _FLOOD not in lately:
            lately[_FLOOD] = now
            company.decisions.write("refused", run="", message="", by="protocol", why="flood")
        return False
    if news or not again:
        lately[what] = now
    return news


def _asked(plan: Plan) -> tuple[str, ...]:
    return "asked", plan.run, plan.digest().hex()


def _forget_asked(company: Company, run: str) -> None:
    """Another request for this run is one of its own."""
    lately = _told.get(str(company.home), {})
    for each in [each for each in lately if each[:2] == ("asked", run)]:
        del lately[each]


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
