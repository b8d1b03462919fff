"""Key agreement, key derivation and the sealed channel between two companies.

Bonawitz et al. (CCS 2017), Sec. 3.2 (key agreement: X25519, hashed with HKDF-SHA256) and Sec. 3.3
(authenticated encryption: ChaCha20-Poly1305). The paper makes a new pair c_u (Fig. 4, round 0)
for every sum; here it is kept for a run, which saves a message phase in every round. The keys that a sum
derives from it are bound to the session's digest, the direction and both public keys.

A channel key is sent with its owner's signature (`ChannelKey`), and used only if that is from the identity which
the recipient has pinned: whoever transports it can lose it, but not replace it.
"""

import secrets
from dataclasses import dataclass
from itertools import pairwise

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ...errors import ProtocolError
from . import pairs, wire
from .identity import CHANNEL, Member, Roster

KEY_SIZE = 32
NONCE_SIZE = 12
TAG_SIZE = 16
MARK_SIZE = 8
MAX_SESSIONS = 1 << 20


def new_private_key() -> bytes:
    return X25519PrivateKey.generate().private_bytes_raw()


def public_key(private: bytes) -> bytes:
    return loaded(private).public_key().public_bytes_raw()


def loaded(private: bytes) -> X25519PrivateKey:
    """The key, parsed once for any number of calls to `agree`: parsing takes nearly as long as one use."""
    return X25519PrivateKey.from_private_bytes(private)


def agree(private: X25519PrivateKey, public: bytes) -> bytes:
    """The raw X25519 secret, 32 bytes: use it only through `derive`. ProtocolError for an unusable public key."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # wrong size, or a point of low order that would fix the secret
        raise ProtocolError("bad_key", "a public key is not a usable X25519 key") from None


def derive(secret: bytes, digest: bytes, purpose: str, *context: bytes) -> bytes:
    """A 32-byte key for one purpose in the session with this digest (RFC 5869)."""
    info = wire.heading(purpose) + wire.blobs(*context)
    return HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=digest, info=info).derive(secret)


def seal(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    # The key is new in every session; the random nonce is an additional protection.
    nonce = secrets.token_bytes(NONCE_SIZE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plaintext, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], associated)
    except (InvalidTag, ValueError):
        raise ProtocolError("bad_share", "a sealed share was altered or is not meant for this use") from None


@dataclass(frozen=True)
class ChannelKey:
    """The public half of `ChannelKeys` with its owner's signature over run, settings, roster and name."""

    public: bytes
    signature: bytes

    def check(self, roster: Roster, owner: str, run: str, settings_digest: bytes) -> None:
        """Check that `owner`, as pinned in `roster`, has signed this key for this run; raises as `Roster.check`."""
        roster.check(self.signature, CHANNEL, owner, run.encode(), settings_digest, self.public)

    def check_usable(self) -> None:
        """Raises ProtocolError for an unusable key, with which every peer would refuse its owner's sessions."""
        agree(loaded(new_private_key()), self.public)


class ChannelKeys:
    """One company's X25519 pair for one run, and the sessions it has been used in.

    The record of sessions ensures one answer per session: a company that is started twice in one session has its
    peers' shares twice, and could be asked for a seed share in one copy and for a key share of the same peer in the
    other. So store the keys again after every `CompanySession.start`, before the advert leaves; a new run makes new
    keys.
    """

    def __init__(self, private: bytes, begun: frozenset[bytes] = frozenset()) -> None:
        self._private = private
        self._key = loaded(private)
        self._begun = begun
        self.public = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> "ChannelKeys":
        return cls(new_private_key())

    def __repr__(self) -> str:
        return f"ChannelKeys(public={self.public.hex()}, sessions={len(self._begun)}, private=<redacted>)"

    def signed(self, member: Member, run: str, settings_digest: bytes) -> ChannelKey:
        """The signed public key for the other companies of this run; Ed25519 signatures are deterministic."""
        signature = member.sign(CHANNEL, run.encode(), settings_digest, self.public)
        return ChannelKey(self.public, signature)

    def begin(self, digest: bytes) -> None:
        """Record that a session starts; ProtocolError("replay") for one that has started before."""
        mark = digest[:MARK_SIZE]  # a chance match only refuses a session, so 8 bytes are enough
        if mark in self._begun:
            raise ProtocolError("replay", "this company has already begun this session")
        if len(self._begun) >= MAX_SESSIONS:
            raise ProtocolError("replay", f"channel keys serve at most {MAX_SESSIONS} sessions")
        self._begun = self._begun | {mark}

    def share_keys(self, digest: bytes, me: str, peer: str, peer_public: bytes) -> tuple[bytes, bytes]:
        """Keys that seal shares in this session: from me to the peer, from the peer to me."""
        here, there = (me.encode(), self.public), (peer.encode(), peer_public)
        ends = tuple(sorted((self.public, peer_public)))
        secret = pairs.once(ends, lambda: agree(self._key, peer_public), again=True)

        def key(*ends: bytes) -> bytes:
            return pairs.once((digest, *ends), lambda: derive(secret, digest, "share", *ends))

        return key(*here, *there), key(*there, *here)

    def to_bytes(self) -> bytes:
        marks = b"".join(sorted(self._begun))
        return wire.header(wire.CHANNEL_KEYS) + wire.blob(self._private) + wire.blob(marks)

    @classmethod
    def from_bytes(cls, data: bytes) -> "ChannelKeys":
        reader = wire.Reader(data, wire.CHANNEL_KEYS)
        private = reader.exactly(KEY_SIZE)
        packed = reader.blob(0, MAX_SESSIONS * MARK_SIZE)
        reader.done()
        marks = [packed[at : at + MARK_SIZE] for at in range(0, len(packed), MARK_SIZE)]
        if len(packed) % MARK_SIZE or any(a >= b for a, b in pairwise(marks)):
            raise ProtocolError("malformed", "the marks of begun sessions are damaged")
        return cls(private, frozenset(marks))
