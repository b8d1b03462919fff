"""The coordinator's side of one secure sum. It holds no secret: it sees only the messages.

Bonawitz et al. (CCS 2017), Fig. 4, server's side:

    aggregation = Aggregation(session, roster)
    aggregation.add_advert(company, advert)              ...   adverts = aggregation.close_adverts()
    aggregation.add_masked(company, packed)              ...   survivors = aggregation.close_masked()
    aggregation.add_confirmation(company, confirmation)  ...   confirmations = aggregation.close_confirmations()
    aggregation.add_shares(company, answer)              ...   total, survivors = aggregation.open()

Each message is checked when it arrives, signatures against the coordinator's own roster, so that the sender of a
faulty one is known and counts as a dropout: no company's safety depends on these checks. Masked vectors are summed
as they arrive: memory does not grow with the cohort.
"""

from enum import Enum

import numpy as np
from numpy.typing import NDArray

from ...errors import ProtocolError
from . import keys, masks, packing, shamir, wire
from .identity import ADVERT, SURVIVORS, Roster
from .messages import SEALED_SIZE, Advert, Confirmation, Confirmations, Survivors, UnmaskShares, transcript
from .session import Session


class Stage(Enum):
    ADVERTS = "adverts"
    MASKED = "masked vectors"
    CONFIRMATIONS = "confirmations"
    SHARES = "shares"
    OPENED = "opened"


class Aggregation:
    """Collects one session's messages and opens their sum, at most once.

    Raises:
        ProtocolError: from every method; its code says what is wrong with a message, or what is missing.
    """

    def __init__(self, session: Session, roster: Roster) -> None:
        roster.require(session.cohort)
        self.session = session
        self._roster = roster
        self._digest = session.digest()
        self._stage = Stage.ADVERTS
        self._adverts: dict[str, Advert] = {}
        self._sum = np.zeros(0, dtype=np.uint32)
        self._survivors: set[str] = set()
        self._transcript = b""
        self._confirmed: tuple[bytes, ...] = ()  # what each survivor signs
        self._confirmations: dict[str, bytes] = {}
        self._answers: dict[str, UnmaskShares] = {}
        self._probe = keys.loaded(keys.new_private_key())

    def __repr__(self) -> str:
        counts = f"{len(self._adverts)} adverts, {len(self._survivors)} vectors, {len(self._answers)} answers"
        return f"Aggregation(round={self.session.round}, label={self.session.label!r}, {counts})"

    def add_advert(self, company: str, advert: Advert) -> None:
        self._expect(Stage.ADVERTS)
        if company not in self.session.cohort:
            raise ProtocolError("not_in_cohort", f"{company!r} is not in the session's cohort")
        self._check_new(company, company in self._adverts, advert.session)
        if len(advert.commitment) != wire.DIGEST_SIZE:
            raise ProtocolError("malformed", f"the commitment of {company!r} has the wrong size")
        if advert.shares.keys() != set(self.session.cohort) - {company}:
            raise ProtocolError("bad_share", f"the advert of {company!r} does not hold a share for each peer")
        if any(len(sealed) != SEALED_SIZE for sealed in advert.shares.values()):
            raise ProtocolError("bad_share", f"a sealed share of {company!r} has the wrong size")
        parts = self._digest, advert.public, advert.commitment
        self._roster.check(advert.signature, ADVERT, company, *parts)
        # An unusable key would make every other company refuse; here only its owner drops out.
        keys.agree(self._probe, advert.public)
        self._adverts[company] = advert

    def close_adverts(self) -> dict[str, Advert]:
        """U1: the companies whose vectors, or whose masks if they drop out, can be handled. To each, send the
        adverts `.for_recipient(name)`."""
        self._expect(Stage.ADVERTS)
        self._check_enough(len(self._adverts), "adverts")
        self._stage = Stage.MASKED
        self._transcript = transcript(self._digest, self._adverts)
        self._sum = np.zeros(self.session.length, dtype=np.uint32)  # (length,)
        return {name: self._adverts[name] for name in sorted(self._adverts)}

    def add_masked(self, company: str, packed: NDArray[np.uint8]) -> None:
        """`packed`: the masked vector as `CompanySession.mask` returns it."""
        self._expect(Stage.MASKED)
        if company not in self._adverts:
            raise ProtocolError("not_in_cohort", f"{company!r} sent no advert")
        self._check_new(company, company in self._survivors, self._digest)
        packing.add_packed(self._sum, packed, self.session.bits)
        self._survivors.add(company)

    def close_masked(self) -> Survivors:
        """U2: the companies whose vectors are in the sum. Send the set to exactly these, to confirm it."""
        self._expect(Stage.MASKED)
        self._check_enough(len(self._survivors), "masked vectors")
        self._stage = Stage.CONFIRMATIONS
        names = tuple(sorted(self._survivors))
        self._confirmed = self._digest, self._transcript, wire.names(names)
        return Survivors(session=self._digest, names=names)

    def add_confirmation(self, company: str, confirmation: Confirmation) -> None:
        self._expect(Stage.CONFIRMATIONS)
        if company not in self._survivors:
            raise ProtocolError("not_in_cohort", f"{company!r} is not a survivor")
        self._check_new(company, company in self._confirmations, confirmation.session)
        self._roster.check(confirmation.signature, SURVIVORS, company, *self._confirmed)
        self._confirmations[company] = confirmation.signature

    def close_confirmations(self) -> Confirmations:
        """U3: the companies that confirmed the set. Ask exactly these for shares, and send them all signatures."""
        self._expect(Stage.CONFIRMATIONS)
        self._check_enough(len(self._confirmations), "confirmations")
        self._stage = Stage.SHARES
        return Confirmations(session=self._digest, signatures=dict(sorted(self._confirmations.items())))

    def add_shares(self, company: str, shares: UnmaskShares) -> None:
        self._expect(Stage.SHARES)
        if company not in self._confirmations:
            raise ProtocolError("not_in_cohort", f"{company!r} has confirmed nothing")
        self._check_new(company, company in self._answers, shares.session)
        dropped = self._adverts.keys() - self._survivors
        if shares.seeds.keys() != self._survivors or shares.keys.keys() != dropped:
            raise ProtocolError("bad_survivors", f"the answer of {company!r} is for another set of survivors")
        for share in (*shares.seeds.values(), *shares.keys.values()):
            shamir.check_share(share)
        self._answers[company] = shares

    def open(self) -> tuple[NDArray[np.uint32], tuple[str, ...]]:
        """The sum of the survivors' residues mod 2^bits (length,), and the survivors.

        Raises:
            ProtocolError: "too_few" when answers are missing (more may be added and `open` called again),
                "bad_share" when the shares do not restore the secrets that the adverts fixed; nothing is opened.
        """
        self._expect(Stage.SHARES)
        self._check_enough(len(self._answers), "answers")
        survivors = tuple(sorted(self._survivors))
        # The same answerers for every secret: a share's x is its holder's place in the cohort.
        place = {name: x for x, name in enumerate(self.session.cohort, start=1)}
        answers = [
            (place[who], self._answers[who]) for who in sorted(self._answers)[: self.session.threshold]
        ]
        add: list[bytes] = []
        subtract: list[bytes] = []
        for name in survivors:
            seed = shamir.combine({x: answer.seeds[name] for x, answer in answers})
            commitment = masks.seed_commitment(seed, self._digest, name)
            if not wire.same(commitment, self._adverts[name].commitment):
                raise ProtocolError("bad_share", f"the shares do not restore the seed of {name!r}")
            subtract.append(masks.self_mask_key(seed, self._digest, name))
        for name in sorted(self._adverts.keys() - self._survivors):
            private = shamir.combine({x: answer.keys[name] for x, answer in answers})
            public = self._adverts[name].public
            if not wire.same(keys.public_key(private), public):
                raise ProtocolError("bad_share", f"the shares do not restore the mask key of {name!r}")
            mask_key = keys.loaded(private)
            for peer in survivors:
                # What the dropped company would have added cancels what the survivor subtracted.
                other = (peer, self._adverts[peer].public)
                key, adds = masks.pair_mask_key(mask_key, self._digest, (name, public), other)
                (add if adds else subtract).append(key)
        total = masks.apply_masks(self._sum, add, subtract, self.session.largest)
        self._stage = Stage.OPENED
        self._answers = {}
        return total, survivors

    def _expect(self, stage: Stage) -> None:
        if self._stage is not stage:
            raise ProtocolError("wrong_phase", f"expected {stage.value}, the stage is {self._stage.value}")

    def _check_new(self, company: str, known: bool, digest: bytes) -> None:
        if known:
            raise ProtocolError("duplicate", f"{company!r} has already sent this message")
        if not wire.same(digest, self._digest):
            raise ProtocolError("wrong_session", f"the message of {company!r} is for another session")

    def _check_enough(self, count: int, what: str) -> None:
        if count < self.session.threshold:
            raise ProtocolError("too_few", f"{count} {what} are below the threshold {self.session.threshold}")
