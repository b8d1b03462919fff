"""A company's side of one secure sum: key pairs, masked vector, confirmed survivors, unmasking shares.

Bonawitz et al. (CCS 2017), Fig. 4 with the steps for an active server, rounds 0 and 1 in one message,
because the keys that seal the shares are kept for the run (`ChannelKeys`). So a company that drops out while
it trains has sent its shares already, and a sum takes four phases:

    company = CompanySession.start(session, member, channel, channels, minimum_cohort=5)
    advert = company.advert()                           # phase 1
    masked = company.mask(residues, adverts)            # phase 2
    confirmation = company.confirm(survivors)           # phase 3
    answer = company.unmask(confirmations)              # phase 4

Every step checks what the coordinator proposes against the company's own minimum and pinned roster, and
refuses with a ProtocolError before it changes anything. A vector is masked once, one survivor set is
confirmed and shares are sent once: two vectors under the same masks would reveal their difference, and a
seed share together with a key share of one peer would unmask it. Between steps the state is bytes (`to_bytes`);
**store the new state before the step's answer leaves**, and never go back to an older one; where the transport
does not ensure that, `client/replay_guard.py` does.
"""

import secrets
from collections.abc import Mapping
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ...errors import ProtocolError
from . import keys, masks, shamir, wire
from .identity import ADVERT, SURVIVORS, Member
from .messages import (
    SHARE_PAIR_SIZE,
    Advert,
    Confirmation,
    Confirmations,
    Survivors,
    UnmaskShares,
    associated_data,
    transcript,
)
from .session import Session, lowest_threshold

# With two, the sum and one's own vector reveal the other vector.
SMALLEST_COHORT = 3


class Phase(IntEnum):
    ADVERTISED = 1
    MASKED = 2
    CONFIRMED = 3
    ANSWERED = 4


class CompanySession:
    """The state of one company in one session. Holds secrets: keep its bytes as private as the data.

    Python cannot overwrite `bytes`, so "erased" below means that the state no longer refers to a secret.
    """

    def __init__(self, session: Session, member: Member, floor: int, phase: Phase) -> None:
        self.session = session
        self.me = member.name
        self._member = member
        self._digest = session.digest()
        self._floor = floor
        self._phase = phase
        self._private = b""  # mask private key, until the vector is masked
        self._seed = b""  # self-mask seed, until the vector is masked
        self._advert: Advert | None = None
        self._receive: dict[str, bytes] = {}  # keys that open each peer's share, until they are opened
        self._shares: dict[str, bytes] = {}  # seed share | key share of each company, until answered
        self._transcript = b""  # of the adverts that the vector was masked with, until answered
        self._survivors: tuple[str, ...] = ()  # the set this company has signed, until answered
        self._checked: tuple[Mapping[str, Advert], dict[str, bytes]] | None = None  # spares a second check

    def __repr__(self) -> str:
        where = f"run={self.session.run!r}, round={self.session.round}, label={self.session.label!r}"
        return f"CompanySession({self.me!r}, {where}, {self._phase.name.lower()}, secrets=<redacted>)"

    @classmethod
    def start(
        cls,
        session: Session,
        member: Member,
        channel: keys.ChannelKeys,
        channels: Mapping[str, keys.ChannelKey],
        minimum_cohort: int,
        colluders: int = 0,
    ) -> "CompanySession":
        """Accepts or refuses a proposal; makes fresh keys, and shares of them for every member.

        `channels` holds the channel key of at least every cohort member, signed for this run. `minimum_cohort` is
        this company's own minimum, at least 3. `colluders` of the cohort may work with the coordinator, and in any
        case fewer than a third may. Records the session in `channel`, which refuses a second start: store `channel`
        again.

        Raises:
            ProtocolError: the proposal breaks one of the company's rules, or the session was started before.
        """
        me, floor = member.name, max(minimum_cohort, SMALLEST_COHORT)
        parties = len(session.cohort)
        if me not in session.cohort:
            raise ProtocolError("not_in_cohort", f"{me!r} is not in the session's cohort")
        if parties < floor:
            raise ProtocolError("small_cohort", f"a cohort of {parties} is below the minimum of {floor}")
        lowest = lowest_threshold(parties, colluders)
        if session.threshold < lowest:
            rule = f"expected at least {lowest} of {parties}"
            raise ProtocolError("low_threshold", f"threshold {session.threshold}: {rule}")
        member.roster.require(session.cohort)
        missing = [name for name in session.cohort if name not in channels]
        if missing:
            raise ProtocolError("no_channel", f"no channel key of {missing[0]!r}")
        for name in session.cohort:
            if name != me:  # its own is compared below
                channels[name].check(member.roster, name, session.run, session.settings_digest)
        if not wire.same(channels[me].public, channel.public):
            raise ProtocolError("bad_key", "another channel key is handed out under this company's name")
        self = cls(session, member, floor, Phase.ADVERTISED)
        send = {}
        for peer in session.cohort:
            if peer != me:
                pair = channel.share_keys(self._digest, me, peer, channels[peer].public)
                send[peer], self._receive[peer] = pair
        channel.begin(self._digest)
        self._make_secrets(send)
        return self

    def _make_secrets(self, send: Mapping[str, bytes]) -> None:
        threshold, parties = self.session.threshold, len(self.session.cohort)
        self._private = keys.new_private_key()
        self._seed = secrets.token_bytes(shamir.SECRET_SIZE)
        public = keys.public_key(self._private)
        commitment = masks.seed_commitment(self._seed, self._digest, self.me)
        seeds = shamir.split(self._seed, threshold, parties)
        privates = shamir.split(self._private, threshold, parties)
        sealed = {}
        for peer, seed_share, key_share in zip(self.session.cohort, seeds, privates, strict=True):
            if peer == self.me:
                self._shares[peer] = seed_share + key_share
            else:
                bound = associated_data(self._digest, self.me, peer, public, commitment)
                sealed[peer] = keys.seal(send[peer], seed_share + key_share, bound)
        self._advert = Advert(
            session=self._digest,
            public=public,
            commitment=commitment,
            shares=sealed,
            signature=self._member.sign(ADVERT, self._digest, public, commitment),
        )

    def advert(self) -> Advert:
        """Phase 1. The same advert at every call, so a lost message may be sent again."""
        self._expect(Phase.ADVERTISED)
        assert self._advert is not None  # held throughout this phase; see from_bytes
        return self._advert

    def check_adverts(self, adverts: Mapping[str, Advert]) -> None:
        """Raises what `mask` would raise about the adverts, without changing the state.

        Call it before the training, whose privacy cost a later refusal would waste.
        """
        self._receive_adverts(adverts, self.advert())

    def mask(self, residues: NDArray[np.uint32], adverts: Mapping[str, Advert]) -> NDArray[np.uint8]:
        """Phase 2. `residues` (length,) uint32 below 2^bits, masked and packed; `adverts` of all who sent one.

        The adverts may be restricted to this company (`Advert.for_recipient`). Afterwards the state
        holds the peers' shares and no secret of its own.

        Raises:
            ProtocolError: an advert, the set of adverts or the vector is refused; so in the other phases.
        """
        own = self.advert()
        masks.check_vector(self.session, residues)
        opened = self._receive_adverts(adverts, own)
        add = [masks.self_mask_key(self._seed, self._digest, self.me)]
        subtract: list[bytes] = []
        private, mine = keys.loaded(self._private), (self.me, own.public)
        for peer in opened:
            other = peer, adverts[peer].public
            key, adds = masks.pair_mask_key(private, self._digest, mine, other)
            (add if adds else subtract).append(key)
        masked = masks.masked_and_packed(residues, add, subtract, self.session.bits)
        self._shares.update(opened)
        self._transcript = transcript(self._digest, adverts)
        self._private = self._seed = b""
        self._advert, self._receive, self._checked = None, {}, None
        self._phase = Phase.MASKED
        return masked

    def confirm(self, survivors: Survivors) -> Confirmation:
        """Phase 3. A signature over the set whose vectors are to be summed, and over all adverts.

        The same set may be confirmed again, so that a lost message may be sent again; another set never.
        """
        if self._phase is not Phase.CONFIRMED:
            self._expect(Phase.MASKED)
        self._check_session(survivors.session)
        names = survivors.names
        alive = set(names)
        if tuple(sorted(alive)) != names or not alive <= self._shares.keys():
            raise ProtocolError("bad_survivors", "the survivors are no subset of those who sent an advert")
        if self.me not in alive:
            raise ProtocolError("bad_survivors", "this company sent a vector and is not among the survivors")
        self._check_size(len(alive), "survivors")
        if self._survivors and names != self._survivors:
            raise ProtocolError("second_set", "this company has confirmed another set of survivors")
        signature = self._member.sign(SURVIVORS, *self._confirmed(names))
        self._survivors = names
        self._phase = Phase.CONFIRMED
        return Confirmation(session=self._digest, signature=signature)

    def unmask(self, confirmations: Confirmations) -> UnmaskShares:
        """Phase 4. For each survivor a share of its seed, for each dropped company of its mask key.

        Only for the set this company has signed, and only if at least `threshold` survivors have signed the
        same. Answered once; afterwards every secret of the session is erased.
        """
        self._expect(Phase.CONFIRMED)
        self._check_session(confirmations.session)
        self._check_size(len(self._survivors), "survivors")
        signatures = confirmations.signatures
        if not signatures.keys() <= set(self._survivors):
            raise ProtocolError("bad_survivors", "a confirmation comes from outside the confirmed set")
        self._check_enough(len(signatures), "confirmations")
        parts = self._confirmed(self._survivors)
        for name, signature in signatures.items():
            self._member.roster.check(signature, SURVIVORS, name, *parts)
        alive = set(self._survivors)
        seeds = {name: self._shares[name][: shamir.SHARE_SIZE] for name in alive}
        dropped = self._shares.keys() - alive
        privates = {name: self._shares[name][shamir.SHARE_SIZE :] for name in dropped}
        self._shares, self._transcript, self._survivors = {}, b"", ()
        self._phase = Phase.ANSWERED
        return UnmaskShares(session=self._digest, seeds=seeds, keys=privates)

    def _confirmed(self, names: tuple[str, ...]) -> tuple[bytes, ...]:
        return self._digest, self._transcript, wire.names(names)

    def _expect(self, phase: Phase) -> None:
        if self._phase is not phase:
            raise ProtocolError("wrong_phase", f"expected {phase.name}, the session is {self._phase.name}")

    def _check_session(self, digest: bytes) -> None:
        if not wire.same(digest, self._digest):
            raise ProtocolError("wrong_session", "the message is for another session")

    def _check_size(self, size: int, what: str) -> None:
        if size < self._floor:
            raise ProtocolError("small_cohort", f"{size} {what} are below the minimum of {self._floor}")
        self._check_enough(size, what)

    def _check_enough(self, size: int, what: str) -> None:
        if size < self.session.threshold:
            raise ProtocolError("too_few", f"{size} {what} are below the threshold {self.session.threshold}")

    def _receive_adverts(self, adverts: Mapping[str, Advert], own: Advert) -> dict[str, bytes]:
        """The pair of shares that each peer has sealed for this company."""
        if self._checked is not None and self._checked[0] == adverts:
            return self._checked[1]
        if self.me not in adverts:
            raise ProtocolError("not_in_cohort", "this company's advert is not among the adverts")
        if not adverts.keys() <= set(self.session.cohort):
            raise ProtocolError("not_in_cohort", "an advert comes from outside the cohort")
        self._check_size(len(adverts), "adverts")
        for peer, advert in adverts.items():
            if not wire.same(advert.session, self._digest):
                raise ProtocolError("wrong_session", f"the advert of {peer!r} is for another session")
        shown = adverts[self.me]
        if not wire.same(shown.public + shown.commitment, own.public + own.commitment):
            raise ProtocolError("bad_key", "this company's own advert was replaced")
        peers = {peer: advert for peer, advert in adverts.items() if peer != self.me}
        for peer, advert in peers.items():
            parts = self._digest, advert.public, advert.commitment
            self._member.roster.check(advert.signature, ADVERT, peer, *parts)
        opened = {peer: self._open(peer, advert) for peer, advert in peers.items()}
        self._checked = dict(adverts), opened
        return opened

    def _open(self, peer: str, advert: Advert) -> bytes:
        sealed = advert.shares.get(self.me, b"")
        bound = associated_data(self._digest, peer, self.me, advert.public, advert.commitment)
        pair = keys.unseal(self._receive[peer], sealed, bound)
        if len(pair) != SHARE_PAIR_SIZE:
            raise ProtocolError("bad_share", f"the sealed share of {peer!r} has the wrong size")
        return pair

    def to_bytes(self) -> bytes:
        """The state, secrets included. Identity and roster are not in it: they stay in the company's own files."""
        fields = (
            self.session.to_bytes(),
            self.me.encode(),
            self._private,
            self._seed,
            b"" if self._advert is None else self._advert.to_bytes(),
            self._transcript,
        )
        head = wire.header(wire.COMPANY_STATE) + wire.u32(self._phase) + wire.u32(self._floor)
        tables = wire.table(self._receive) + wire.table(self._shares)
        return head + b"".join(map(wire.blob, fields)) + wire.names(self._survivors) + tables

    @classmethod
    def from_bytes(cls, data: bytes, member: Member, minimum_cohort: int = 0) -> "CompanySession":
        """The state of `member`, which must be the company that `to_bytes` was called for.

        `minimum_cohort`: the company's current minimum; if it has risen, it holds from here on.

        Raises:
            ProtocolError: "malformed", the bytes are not such a state.
        """
        reader = wire.Reader(data, wire.COMPANY_STATE)
        phase, floor = reader.u32(), reader.u32()
        session = Session.from_bytes(reader.blob(1, wire.MAX_MESSAGE))
        me, held = reader.text(), shamir.SECRET_SIZE if phase == Phase.ADVERTISED else 0
        if phase not in list(Phase) or floor < SMALLEST_COHORT or me not in session.cohort:
            raise ProtocolError("malformed", "the state's phase, floor or name is not possible")
        if me != member.name:
            raise ProtocolError("malformed", "the state is another company's")
        self = cls(session, member, max(floor, minimum_cohort), Phase(phase))
        self._private, self._seed = reader.exactly(held), reader.exactly(held)
        advert = reader.blob(1 if held else 0, wire.MAX_MESSAGE if held else 0)
        self._advert = Advert.from_bytes(advert) if held else None
        shown = phase in (Phase.MASKED, Phase.CONFIRMED)
        self._transcript = reader.exactly(wire.DIGEST_SIZE if shown else 0)
        self._survivors = reader.names()
        self._receive, self._shares = reader.table(keys.KEY_SIZE), reader.table(SHARE_PAIR_SIZE)
        reader.done()
        self._check_state()
        return self

    def _check_state(self) -> None:
        cohort, me, known = set(self.session.cohort), {self.me}, self._shares.keys()
        peers = cohort - me if self._phase is Phase.ADVERTISED else set()
        fits = {
            Phase.ADVERTISED: known == me,
            Phase.MASKED: me <= known,
            Phase.CONFIRMED: me <= set(self._survivors) <= known,
            Phase.ANSWERED: not known,
        }
        if self._receive.keys() != peers or not known <= cohort:
            raise ProtocolError("malformed", "the state's keys or shares are not those of the cohort")
        if not fits[self._phase] or bool(self._survivors) != (self._phase is Phase.CONFIRMED):
            raise ProtocolError("malformed", "the state's shares or survivors do not fit its phase")
