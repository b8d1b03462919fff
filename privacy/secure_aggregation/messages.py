"""The three messages besides the masked vector itself.

Bonawitz et al. (CCS 2017), Fig. 4: `Advert` is rounds 0 and 1 in one, `Survivors` opens round 3 and
`UnmaskShares` is round 4. The masked vector of round 2 is a plain uint32 array.

Identity signatures are not part of this version. Their place is the `signature` field, which is
carried and not read. In an `Advert` it will cover the session digest, the sender, its mask key and the
commitment (the sealed shares are bound to these already, and each recipient sees only its own). In
`Survivors` it will cover the session digest and the names, as in the consistency check of Fig. 4, round 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...errors import ProtocolError
from . import wire
from .keys import KEY_SIZE, NONCE_SIZE, TAG_SIZE
from .shamir import SHARE_SIZE

# One sealed message carries the recipient's share of the seed and its share of the mask key.
SHARE_PAIR_SIZE = 2 * SHARE_SIZE
SEALED_SIZE = NONCE_SIZE + SHARE_PAIR_SIZE + TAG_SIZE


def associated_data(digest: bytes, sender: str, receiver: str, public: bytes, commitment: bytes) -> bytes:
    """What a sealed share is bound to: the session, both ends, and the rest of the sender's advert.

    Binding the advert's public parts means that a coordinator cannot swap a mask key under shares
    that it cannot forge.
    """
    return b"".join(map(wire.blob, (digest, sender.encode(), receiver.encode(), public, commitment)))


@dataclass(frozen=True, kw_only=True)
class Advert:
    """A company's opening message: its mask public key and its sealed shares, keyed by recipient.

    `commitment` fixes the self-mask seed. 32 + 32 + 32 bytes and about 100 bytes a peer; what goes to
    one recipient (`for_recipient`) has about 230.
    """

    session: bytes
    public: bytes
    commitment: bytes
    shares: Mapping[str, bytes]
    signature: bytes = b""

    def __repr__(self) -> str:
        return f"Advert(public={self.public.hex()}, shares for {sorted(self.shares)})"

    def for_recipient(self, company: str) -> "Advert":
        """The advert with only the share sealed for `company`: none if it is the sender's own."""
        return replace(self, shares={name: s for name, s in self.shares.items() if name == company})

    def to_bytes(self) -> bytes:
        fixed = map(wire.blob, (self.session, self.public, self.commitment))
        signature = wire.blob(self.signature)
        return b"".join((wire.header(wire.ADVERT), *fixed, wire.table(self.shares), signature))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Advert":
        reader = wire.Reader(data, wire.ADVERT)
        advert = cls(
            session=reader.exactly(wire.DIGEST_SIZE),
            public=reader.exactly(KEY_SIZE),
            commitment=reader.exactly(KEY_SIZE),
            shares=reader.table(SEALED_SIZE),
            signature=reader.blob(0, wire.MAX_SIGNATURE),
        )
        reader.done()
        return advert


@dataclass(frozen=True, kw_only=True)
class Survivors:
    """The set whose vectors are to be summed: the coordinator's request for shares."""

    session: bytes
    names: tuple[str, ...]
    signature: bytes = b""

    def to_bytes(self) -> bytes:
        head = wire.header(wire.SURVIVORS) + wire.blob(self.session)
        return head + wire.names(self.names) + wire.blob(self.signature)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Survivors":
        reader = wire.Reader(data, wire.SURVIVORS)
        survivors = cls(
            session=reader.exactly(wire.DIGEST_SIZE),
            names=reader.names(),
            signature=reader.blob(0, wire.MAX_SIGNATURE),
        )
        reader.done()
        return survivors


@dataclass(frozen=True, kw_only=True)
class UnmaskShares:
    """One company's answer: a share of the seed of each survivor, of the mask key of each dropped one."""

    session: bytes
    seeds: Mapping[str, bytes]
    keys: Mapping[str, bytes]

    def __post_init__(self) -> None:
        if not self.seeds.keys().isdisjoint(self.keys):
            raise ProtocolError("bad_survivors", "seed and key share of one company must never meet")

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
