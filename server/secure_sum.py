"""One secure sum over a cohort, phase by phase: masked vectors come in, and of them only their sum is opened.

The phases are those of Bonawitz et al. (CCS 2017), Fig. 4; each takes what the phase before it returned:

    secure_sum = SecureSum(session, cohort, "round-1-block-0", absences)
    adverts = secure_sum.keys()
    survivors = secure_sum.train(block, states, adverts)
    confirmations = secure_sum.confirm(survivors)
    residues, summed = secure_sum.unmask(confirmations)

`privacy.secure_aggregation.Aggregation` decides what is valid, `Cohort` carries the messages. A company whose message
is missing, malformed or refused only loses its place; too few companies end the sum, and nothing is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from flwr.app import RecordDict

from ..blocks.state import State
from ..errors import ProtocolError
from ..privacy.secure_aggregation import Advert, Aggregation, Confirmations, Session, Survivors
from ..protocol.messages import (
    CONFIRM,
    EVALUATE,
    KEYS,
    TRAIN,
    UNMASK,
    ConfirmReply,
    ConfirmRequest,
    EvaluateRequest,
    KeysReply,
    KeysRequest,
    TrainReply,
    TrainRequest,
    UnmaskReply,
    UnmaskRequest,
)
from .cohort import Cohort

Reply = TypeVar("Reply")


@dataclass
class Absences:
    """Why companies are missing from a sum: company -> (phase, code); `no_reply` where nothing came."""

    why: dict[str, tuple[str, str]] = field(default_factory=dict)

    def note(self, company: str, phase: str, code: str) -> None:
        """A company's first absence counts: what follows is only its consequence."""
        self.why.setdefault(company, (phase, code))


class SecureSum:
    """The coordinator's side of one session over a transport; `group` labels its messages.

    Every phase raises ProtocolError: "too_few" below the session's threshold, "wrong_phase" out of order.
    """

    def __init__(self, session: Session, cohort: Cohort, group: str, absences: Absences) -> None:
        self._session, self._cohort, self._group, self._absences = session, cohort, group, absences
        self._aggregation = Aggregation(session, cohort.roster)

    def keys(self) -> dict[str, Advert]:
        """Each company signs a fresh mask key and sends encrypted shares for its peers."""
        companies = self._session.cohort
        channels = {company: self._cohort.channels[company] for company in companies}
        everyone = dict.fromkeys(companies, KeysRequest(self._session, channels).to_record())
        for company, reply in self._ask(KEYS, everyone, KeysReply.from_record).items():
            self._accept(KEYS, company, self._aggregation.add_advert, reply.advert)
        return self._aggregation.close_adverts()

    def train(self, block: int, states: dict[int, State], adverts: Mapping[str, Advert]) -> Survivors:
        """Each company charges its ledger, trains `block`, clips, adds noise, masks and uploads.

        `states`: the block's own and those that it reads.
        """
        requests = TrainRequest.for_each(block, states, adverts)
        return self._collect(TRAIN, {company: request.to_record() for company, request in requests.items()})

    def evaluate(self, states: dict[int, State], adverts: Mapping[str, Advert]) -> Survivors:
        """In the place of `train`: each company charges its ledger, and judges the model of all blocks on the
        examples that it holds out."""
        requests = EvaluateRequest.for_each(states, adverts)
        return self._collect(
            EVALUATE, {company: request.to_record() for company, request in requests.items()}
        )

    def _collect(self, phase: str, orders: Mapping[str, RecordDict]) -> Survivors:
        for company, reply in self._ask(phase, orders, TrainReply.from_record).items():
            self._accept(phase, company, self._aggregation.add_masked, reply.masked)
        return self._aggregation.close_masked()

    def confirm(self, survivors: Survivors) -> Confirmations:
        """The survivors sign the one set that they are shown, each by its own rules."""
        shown = dict.fromkeys(survivors.names, ConfirmRequest(survivors).to_record())
        for company, reply in self._ask(CONFIRM, shown, ConfirmReply.from_record).items():
            self._accept(CONFIRM, company, self._aggregation.add_confirmation, reply.confirmation)
        return self._aggregation.close_confirmations()

    def unmask(self, confirmations: Confirmations) -> tuple[npt.NDArray[np.uint32], tuple[str, ...]]:
        """Who has signed releases what removes the masks of this sum, and of nothing less.

        The sum of the residues mod 2^bits (length,), and the companies in it; "bad_share" where shares do not fit.
        """
        proof = dict.fromkeys(confirmations.signatures, UnmaskRequest(confirmations).to_record())
        for company, reply in self._ask(UNMASK, proof, UnmaskReply.from_record).items():
            self._accept(UNMASK, company, self._aggregation.add_shares, reply.shares)
        return self._aggregation.open()

    def _ask(
        self, phase: str, requests: Mapping[str, RecordDict], parse: Callable[[RecordDict], Reply]
    ) -> dict[str, Reply]:
        """One phase's well-formed answers by company; whose answer is none is absent.

        The last two phases may be asked again: their answers do not change, and the round is paid for by then.
        """
        answers, failures = self._cohort.ask(phase, self._group, requests, parse)
        back = self._cohort.back if phase in (CONFIRM, UNMASK) else None
        while back is not None and len(answers) < self._session.threshold:
            lost = [company for company, code in failures.items() if code == "no_reply"]
            found = back(lost) if lost else []
            if not found:
                break
            again = {company: requests[company] for company in found}
            more, failed = self._cohort.ask(phase, self._group, again, parse)
            answers |= more
            failures = {c: code for c, code in failures.items() if c not in again} | failed
            if not more:
                break
        for company, code in failures.items():
            self._absences.note(company, phase, code)
        return answers

    def _accept(self, phase: str, company: str, add: Callable[[str, Reply], None], message: Reply) -> None:
        """Give one company's message to the aggregation; a bad one only costs that company its place."""
        try:
            add(company, message)
        except ProtocolError as error:
            self._absences.note(company, phase, error.code)
