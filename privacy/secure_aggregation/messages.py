"""All messages but the masked vector (see `packing`) and the channel keys (see `keys`).

Bonawitz et al. (CCS 2017), Fig. 4: `Advert` is rounds 0 and 1 in one; `Survivors`, `Confirmation` and
`Confirmations` are round 3, the consistency check; `UnmaskShares` is round 4.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import ProtocolError
from . import wire
from .identity import SIGNATURE_SIZE
from .keys import KEY_SIZE, NONCE_SIZE, TAG_SIZE
from .shamir import SHARE_SIZE

# One sealed message carries the recipient's share of the seed and its share of the mask key.
SHARE_PAIR_SIZE = 2 * SHARE_SIZE
SEALED_SIZE = NONCE_SIZE + SHARE_PAIR_SIZE + TAG_SIZE


def associated_data(digest: bytes, sender: str, receiver: str, public: bytes, commitment: bytes) -> bytes:
    """What a sealed share is bound to: the session, both ends, and the rest of the sender's advert.

    Since the advert's public parts are bound, a coordinator cannot replace a mask key and keep its shares.
    """
    ends = wire.text(sender) + wire.text(receiver)
    return wire.blob(digest) + ends + wire.blobs(public, commitment)


@dataclass(frozen=True, kw_only=True)
class Advert:
    """A company's first message: its mask public key and its sealed shares, by recipient.

    `commitment` fixes the self-mask seed. `signature` covers session, mask key and commitment; the sealed
    shares are bound to these by their encryption, and a recipient sees only its own. Size: about 160 bytes plus
    100 bytes a peer; about 290 bytes for one recipient (`for_recipient`).
    """

    session: bytes
    public: bytes
    commitment: bytes
    shares: Mapping[str, bytes]
    signature: bytes

    def __repr__(self) -> str:
        return f"Advert(public={self.public.hex()}, shares for {sorted(self.shares)})"

    def for_recipient(self, company: str) -> "Advert":
        """The advert with only the share sealed for `company`: none if it is the sender's own."""
        share = self.shares.get(company)
        return Advert(
            session=self.session,
            public=self.public,
            commitment=self.commitment,
            shares={} if share is None else {company: share},
            signature=self.signature,
        )

    def to_bytes(self) -> bytes:
        fixed = wire.blobs(self.session, self.public, self.commitment)
        signature = wire.blob(self.signature)
        return b"".join((wire.header(wire.ADVERT), fixed, wire.table(self.shares), signature))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Advert":
        reader = wire.Reader(data, wire.ADVERT)
        advert = cls(
            session=reader.exactly(wire.DIGEST_SIZE),
            public=reader.exactly(KEY_SIZE),
            commitment=reader.exactly(KEY_SIZE),
            shares=reader.table(SEALED_SIZE),
            signature=reader.exactly(SIGNATURE_SIZE),
        )
        reader.done()
        return advert


def transcript(digest: bytes, adverts: Mapping[str, Advert]) -> bytes:
    """SHA-256 over the names, mask keys and commitments of all adverts.

    It covers every company's fresh key, so a signature over it is not valid in a session that is begun again with the
    same digest, and companies that were shown different adverts do not accept each other's confirmations.
    """
    rows = {name: advert.public + advert.commitment for name, advert in adverts.items()}
    head = wire.header(wire.TRANSCRIPT) + wire.blob(digest)
    return hashlib.sha256(head + wire.table(rows)).digest()


@dataclass(frozen=True, kw_only=True)
class Survivors:
    """The set whose vectors are to be summed: the coordinator's request for signatures."""

    session: bytes
    names: tuple[str, ...]

    def to_bytes(self) -> bytes:
        return wire.header(wire.SURVIVORS) + wire.blob(self.session) + wire.names(self.names)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Survivors":
        reader = wire.Reader(data, wire.SURVIVORS)
        survivors = cls(session=reader.exactly(wire.DIGEST_SIZE), names=reader.names())
        reader.done()
        return survivors


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """A survivor's answer: its signature over the session, the adverts and the set."""

    session: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        head = wire.header(wire.CONFIRMATION)
        return head + wire.blob(self.session) + wire.blob(self.signature)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Confirmation":
        reader = wire.Reader(data, wire.CONFIRMATION)
        confirmation = cls(session=reader.exactly(wire.DIGEST_SIZE), signature=reader.exactly(SIGNATURE_SIZE))
        reader.done()
        return confirmation


@dataclass(frozen=True, kw_only=True)
class Confirmations:
    """The survivors' signatures by name: the coordinator's request for shares."""

    session: bytes
    signatures: Mapping[str, bytes]

    def to_bytes(self) -> bytes:
        head = wire.header(wire.CONFIRMATIONS)
        return head + wire.blob(self.session) + wire.table(self.signatures)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Confirmations":
        reader = wire.Reader(data, wire.CONFIRMATIONS)
        confirmations = cls(session=reader.exactly(wire.DIGEST_SIZE), signatures=reader.table(SIGNATURE_SIZE))
        reader.done()
        return confirmations


@dataclass(frozen=True, kw_only=True)
class UnmaskShares:
    """One company's answer: a share of each survivor's seed and of each dropped company's mask key."""

    session: bytes
    seeds: Mapping[str, bytes]
    keys: Mapping[str, bytes]

    def __post_init__(self) -> None:
        if not self.seeds.keys().isdisjoint(self.keys):
            raise ProtocolError("bad_survivors", "an answer has seed and key share of one company")

    def __repr__(self) -> str:
        return f"UnmaskShares(seeds of {sorted(self.seeds)}, keys of {sorted(self.keys)}, <redacted>)"

    def to_bytes(self) -> bytes:
        head = wire.header(wire.UNMASK_SHARES) + wire.blob(self.session)
        return head + wire.table(self.seeds) + wire.table(self.keys)

    @classmethod
    def from_bytes(cls, data: bytes) -> "UnmaskShares":
        reader = wire.Reader(data, wire.UNMASK_SHARES)
        answer = cls(
            session=reader.exactly(wire.DIGEST_SIZE),
            seeds=reader.table(SHARE_SIZE),
            keys=reader.table(SHARE_SIZE),
        )
        reader.done()
        return answer
