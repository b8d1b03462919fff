"""Ed25519 identities, the pinned roster, and signed statements.

Bonawitz et al. (CCS 2017), Fig. 4, "Setup": against an active server every user has a signing key d_u^SK, and
everybody knows every d_v^PK beforehand. Here that is the roster, which each company pins in its own
configuration, out of band: the coordinator can neither add a member nor replace one. Signatures are
Ed25519 (RFC 8032). A signed statement always begins with the same four fields, so that a signature for one purpose,
roster or sender is not valid for another:

    text(DOMAIN) | text(purpose) | blob(roster digest) | text(sender) | blob ...

The roster's digest is among them, so a valid signature also shows that both sides have the same roster.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ...errors import ProtocolError
from . import wire

IDENTITY_SIZE = 32
SIGNATURE_SIZE = 64

# Purposes of signatures, and the parts that follow the four common fields.
CHANNEL = "channel key"  # text(run) | settings digest | channel public key
ADVERT = "advert"  # session digest | mask public key | commitment
SURVIVORS = "survivors"  # session digest | transcript digest | names(survivors)


class Identity:
    """A company's Ed25519 key pair. It is kept for all runs; only its public key leaves the company."""

    def __init__(self, private: bytes) -> None:
        if len(private) != IDENTITY_SIZE:
            raise ProtocolError("bad_key", f"an identity key has {IDENTITY_SIZE} bytes")
        self._key = Ed25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> "Identity":
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    def __repr__(self) -> str:
        return f"Identity(public={self.public.hex()}, private=<redacted>)"

    def sign(self, statement: bytes) -> bytes:
        return self._key.sign(statement)

    def private_bytes(self) -> bytes:
        """The secret itself, for the company's own key file."""
        return self._key.private_bytes_raw()


class Roster:
    """Names and Ed25519 public keys of all who may ever take part; immutable.

    Raises:
        ProtocolError: a name or key is not usable, or two members have the same key.
    """

    def __init__(self, members: Mapping[str, bytes]) -> None:
        if not 1 <= len(members) <= wire.MAX_ROSTER:
            raise ProtocolError("not_in_roster", f"a roster has 1 to {wire.MAX_ROSTER} members")
        for name, public in members.items():
            if not wire.is_name(name):
                raise ProtocolError("not_in_roster", f"expected a name of 1 to {wire.MAX_NAME} bytes")
            try:
                Ed25519PublicKey.from_public_bytes(public)
            except (ValueError, TypeError):
                raise ProtocolError("bad_key", f"the identity of {name!r} is no Ed25519 key") from None
        if len(set(members.values())) != len(members):
            raise ProtocolError("bad_key", "two members of the roster have the same identity")
        self.members: Mapping[str, bytes] = MappingProxyType(dict(members))
        self.digest = hashlib.sha256(wire.header(wire.ROSTER) + wire.table(members)).digest()

    def __repr__(self) -> str:
        return f"Roster({len(self.members)} members, digest={self.digest.hex()})"

    def require(self, names: tuple[str, ...]) -> None:
        strangers = [name for name in names if name not in self.members]
        if strangers:
            raise ProtocolError("not_in_roster", f"{strangers[0]!r} is not in the pinned roster")

    def statement(self, purpose: str, sender: str, *parts: bytes) -> bytes:
        """The bytes that `sender` signs."""
        return wire.heading(purpose) + wire.blob(self.digest) + wire.text(sender) + wire.blobs(*parts)

    def check(self, signature: bytes, purpose: str, sender: str, *parts: bytes) -> None:
        """Check that `sender`, as pinned here, has signed exactly these parts for this purpose.

        A process checks the same signature of the same bytes once: channel keys come again in every session of a
        run, and where companies share a process, each of them is shown every advert.

        Raises:
            ProtocolError: "bad_signature", or "not_in_roster" for an unknown sender.
        """
        self.require((sender,))
        try:
            _verified(self.members[sender], signature, _Statement(self.statement(purpose, sender, *parts)))
        except InvalidSignature:
            self._refuse(purpose, sender)

    def _refuse(self, purpose: str, sender: str) -> NoReturn:
        text = f"the {purpose} of {sender!r} is not signed by the identity in the roster"
        raise ProtocolError("bad_signature", text) from None


class _Statement:
    """Signed bytes, compared by their SHA-256 digest, and let go once they have been read: a confirmation holds the
    names of a whole cohort, and thousands are kept."""

    def __init__(self, content: bytes) -> None:
        self._content: bytes | None = content
        self._digest = hashlib.sha256(content).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Statement) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def read(self) -> bytes:
        content, self._content = self._content, None
        assert content is not None
        return content


# A pure function of public values. Only valid signatures are kept: an exception leaves no entry. The room is for the
# channel keys, adverts and confirmations of the largest cohort.
@lru_cache(maxsize=4 * wire.MAX_COHORT)
def _verified(public: bytes, signature: bytes, statement: _Statement) -> None:
    Ed25519PublicKey.from_public_bytes(public).verify(signature, statement.read())


class Member:
    """A company that takes part: its name, its identity, and the roster it has pinned.

    Raises:
        ProtocolError: the roster does not have this identity under this name.
    """

    def __init__(self, name: str, identity: Identity, roster: Roster) -> None:
        roster.require((name,))
        if not wire.same(roster.members[name], identity.public):
            raise ProtocolError("bad_key", "the roster holds another identity under this company's name")
        self.name = name
        self.roster = roster
        self._identity = identity

    def __repr__(self) -> str:
        return f"Member({self.name!r}, {self.roster!r}, identity=<redacted>)"

    def sign(self, purpose: str, *parts: bytes) -> bytes:
        return self._identity.sign(self.roster.statement(purpose, self.name, *parts))
