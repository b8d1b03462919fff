"""A company's side of one secure sum: key pairs, masked vector, unmasking shares.

Bonawitz et al. (CCS 2017), Fig. 4, with rounds 0 and 1 in one message, because the keys that seal the
shares live for the run (`ChannelKeys`). So a company that drops while it trains has its shares out,
and a sum takes three phases:

    company = CompanySession.start(session, me, channel, channels, minimum_cohort=5)
    advert = company.advert()                           # phase 1
    masked = company.mask(residues, adverts)            # phase 2
    answer = company.unmask(survivors)                  # phase 3

Every step checks what the coordinator proposes against the company's own floors, and refuses with a
ProtocolError before it changes anything. A vector is masked once and shares are answered once: two
vectors under the same masks would show their difference, and a seed share beside a key share of
one peer would unmask it. Between steps the state is bytes (`to_bytes`); **store the new state before
the step's answer leaves**, and never go back to an older one.
"""

import secrets
from collections.abc import Collection, Mapping
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ...errors import ProtocolError
from . import keys, masks, shamir, wire
from .messages import SHARE_PAIR_SIZE, Advert, UnmaskShares, associated_data
from .session import Session, lowest_threshold

# Below three, the sum and one's own vector give the only other vector away.
SMALLEST_COHORT = 3


class Phase(IntEnum):
    ADVERTISED = 1
    MASKED = 2
    ANSWERED = 3


class CompanySession:
    """The state of one company in one session. Holds secrets: keep its bytes as private as the data.

    Python cannot overwrite `bytes`, so "erased" below means that the state lets go of a secret.
    """

    def __init__(self, session: Session, me: str, floor: int, phase: Phase) -> None:
        self.session = session
        self.me = me
        self._digest = session.digest()
        self._floor = floor
        self._phase = phase
        self._private = b""  # mask private key, until the vector is masked
        self._seed = b""  # self-mask seed, until the vector is masked
        self._advert: Advert | None = None
        self._receive: dict[str, bytes] = {}  # keys that open each peer's share, until they are opened
        self._shares: dict[str, bytes] = {}  # seed share | key share of each company, until answered

    def __repr__(self) -> str:
        where = f"run={self.session.run!r}, round={self.session.round}, label={self.session.label!r}"
        return f"CompanySession({self.me!r}, {where}, {self._phase.name.lower()}, secrets=<redacted>)"

    @classmethod
    def start(
        cls,
        session: Session,
        me: str,
        channel: keys.ChannelKeys,
        channels: Mapping[str, bytes],
        minimum_cohort: int,
    ) -> "CompanySession":
        """Accepts or refuses a proposal; makes fresh keys, and shares of them for every member.

        `channels` is the run's roster: the channel public key of at least every cohort member.
        `minimum_cohort` is this company's own floor, raised to 3 if lower. Notes the session in
        `channel`, which refuses a second start: store `channel` again.
        """
        floor = max(minimum_cohort, SMALLEST_COHORT)
        parties = len(session.cohort)
        if me not in session.cohort:
            raise ProtocolError("not_in_cohort", f"{me!r} is not in the session's cohort")
        if parties < floor:
            raise ProtocolError("small_cohort", f"a cohort of {parties} is below the minimum of {floor}")
        if session.threshold < lowest_threshold(parties):
            rule = f"expected at least {lowest_threshold(parties)} of {parties}"
            raise ProtocolError("low_threshold", f"threshold {session.threshold}: {rule}")
        missing = [name for name in session.cohort if name not in channels]
        if missing:
            raise ProtocolError("no_channel", f"no channel key of {missing[0]!r}")
        if not wire.same(channels[me], channel.public):
            raise ProtocolError("bad_key", "the roster holds another channel key under this company's name")
        self = cls(session, me, floor, Phase.ADVERTISED)
        send = {}
        for peer in session.cohort:
            if peer != me:
                pair = channel.share_keys(self._digest, me, peer, channels[peer])
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
        self._advert = Advert(session=self._digest, public=public, commitment=commitment, shares=sealed)

    def advert(self) -> Advert:
        """Phase 1. The same advert every time, so a lost message may be sent again."""
        self._expect(Phase.ADVERTISED)
        assert self._advert is not None  # held throughout this phase; see from_bytes
        return self._advert

    def check_adverts(self, adverts: Mapping[str, Advert]) -> None:
        """Raises what `mask` would raise about the adverts, and changes nothing.

        For use before the training and its privacy cost, which a refusal afterwards would waste.
        """
        self._receive_adverts(adverts, self.advert())

    def mask(self, residues: NDArray[np.uint32], adverts: Mapping[str, Advert]) -> NDArray[np.uint32]:
        """Phase 2. `residues` (length,) uint32 below 2^bits, masked; `adverts` of all who sent one.

        The adverts may be restricted to this company (`Advert.for_recipient`). Afterwards the state
        holds the peers' shares and no secret of its own.
        """
        own = self.advert()
        masks.check_vector(self.session, residues)
        opened = self._receive_adverts(adverts, own)
        add = [masks.self_mask_key(self._seed, self._digest, self.me)]
        subtract: list[bytes] = []
        for peer in opened:
            mine, other = (self.me, own.public), (peer, adverts[peer].public)
            key, adds = masks.pair_mask_key(self._private, self._digest, mine, other)
            (add if adds else subtract).append(key)
        masked = masks.apply_masks(residues, add, subtract, self.session.largest)
        self._shares.update(opened)
        self._private = self._seed = b""
        self._advert, self._receive = None, {}
        self._phase = Phase.MASKED
        return masked

    def unmask(self, survivors: Collection[str]) -> UnmaskShares:
        """Phase 3. For each survivor a share of its seed, for each dropped company of its mask key.

        Answered once; afterwards every secret of the session is erased.
        """
        self._expect(Phase.MASKED)
        alive = set(survivors)
        if len(alive) != len(survivors) or not alive <= self._shares.keys():
            raise ProtocolError("bad_survivors", "the survivors are no subset of those who sent an advert")
        if self.me not in alive:
            raise ProtocolError("bad_survivors", "this company sent a vector and is not among the survivors")
        self._check_size(len(alive), "survivors")
        seeds = {name: self._shares[name][: shamir.SHARE_SIZE] for name in alive}
        dropped = self._shares.keys() - alive
        privates = {name: self._shares[name][shamir.SHARE_SIZE :] for name in dropped}
        self._shares = {}
        self._phase = Phase.ANSWERED
        return UnmaskShares(session=self._digest, seeds=seeds, keys=privates)

    def _expect(self, phase: Phase) -> None:
        if self._phase is not phase:
            raise ProtocolError("wrong_phase", f"expected {phase.name}, the session is {self._phase.name}")

    def _check_size(self, size: int, what: str) -> None:
        if size < self._floor:
            raise ProtocolError("small_cohort", f"{size} {what} are below the minimum of {self._floor}")
        if size < self.session.threshold:
            raise ProtocolError("too_few", f"{size} {what} are below the threshold {self.session.threshold}")

    def _receive_adverts(self, adverts: Mapping[str, Advert], own: Advert) -> dict[str, bytes]:
        """The share pair that each peer has sealed for this company."""
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
        return {peer: self._open(peer, advert) for peer, advert in adverts.items() if peer != self.me}

    def _open(self, peer: str, advert: Advert) -> bytes:
        sealed = advert.shares.get(self.me, b"")
        bound = associated_data(self._digest, peer, self.me, advert.public, advert.commitment)
        pair = keys.unseal(self._receive[peer], sealed, bound)
        if len(pair) != SHARE_PAIR_SIZE:
            raise ProtocolError("bad_share", f"the sealed share of {peer!r} has the wrong size")
        return pair

    def to_bytes(self) -> bytes:
        fields = (
            self.session.to_bytes(),
            self.me.encode(),
            self._private,
            self._seed,
            b"" if self._advert is None else self._advert.to_bytes(),
        )
        head = wire.header(wire.COMPANY_STATE) + wire.u32(self._phase) + wire.u32(self._floor)
        return head + b"".join(map(wire.blob, fields)) + wire.table(self._receive) + wire.table(self._shares)

    @classmethod
    def from_bytes(cls, data: bytes) -> "CompanySession":
        reader = wire.Reader(data, wire.COMPANY_STATE)
        phase, floor = reader.u32(), reader.u32()
        session = Session.from_bytes(reader.blob(1, wire.MAX_MESSAGE))
        me, held = reader.text(), shamir.SECRET_SIZE if phase == Phase.ADVERTISED else 0
        if phase not in list(Phase) or floor < SMALLEST_COHORT or me not in session.cohort:
            raise ProtocolError("malformed", "the state's phase, floor or name is not possible")
        self = cls(session, me, floor, Phase(phase))
        self._private, self._seed = reader.exactly(held), reader.exactly(held)
        advert = reader.blob(1 if held else 0, wire.MAX_MESSAGE if held else 0)
        self._advert = Advert.from_bytes(advert) if held else None
        self._receive, self._shares = reader.table(keys.KEY_SIZE), reader.table(SHARE_PAIR_SIZE)
        reader.done()
        cohort = set(session.cohort)
        peers = cohort - {me} if held else set()
        known = {Phase.ADVERTISED: self._shares.keys() == {me}, Phase.ANSWERED: not self._shares}
        if self._receive.keys() != peers or not self._shares.keys() <= cohort:
            raise ProtocolError("malformed", "the state's keys or shares are not those of the cohort")
        if not known.get(self._phase, me in self._shares):
            raise ProtocolError("malformed", "the state's shares do not fit its phase")
        return self
