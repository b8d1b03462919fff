"""The parameters of one secure sum: agreed by all, and bound into every key and message by their hash.

Bonawitz et al. (CCS 2017), Fig. 4, "Setup": all parties hold the parameters (n, t, field, length).
The digest also covers run, round, label, model and settings, so no key, share or message of one sum is valid in
another.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from ...errors import ProtocolError
from . import wire

MAX_LENGTH = 1 << 30


def lowest_threshold(parties: int, colluders: int = 0) -> int:
    """The smallest t with t > 2n/3 and 2t - n > c.

    Two sets of t signers have 2t - n members in common. If that is more than the colluders, one of them is honest and
    signs one set only: nobody gets both the seed and the mask key of a company (Sec. 6.2). With t > 2n/3 that holds
    for all c < n/3. If the result is above `parties`, no threshold is safe against so many colluders.
    """
    return max(2 * parties // 3, (parties + colluders) // 2) + 1


@dataclass(frozen=True, kw_only=True)
class Session:
    """One secure sum of `length` residues mod 2^bits over a cohort, as the coordinator proposes it.

    `threshold` is both the number of answers that opens the sum and the size of the smallest set that is summed.
    A valid session may still be refused: each company also applies its own minimum values (`CompanySession.start`).

        Session(run="r1", round=3, label="block-0", model_digest=sha, settings_digest=sha,
                cohort=("a", "b", "c", "d"), threshold=3, length=1_000_000)

    Raises:
        ProtocolError: "bad_session", a field is out of range.
    """

    run: str
    round: int
    label: str
    model_digest: bytes
    settings_digest: bytes
    cohort: tuple[str, ...]
    threshold: int
    length: int
    bits: int = 32

    def __post_init__(self) -> None:
        for field, name in (("run", self.run), ("label", self.label), *(("cohort", c) for c in self.cohort)):
            if not wire.is_name(name):
                _refuse(field, f"expected text of 1 to {wire.MAX_NAME} bytes")
        for field, digest in (("model_digest", self.model_digest), ("settings_digest", self.settings_digest)):
            if not isinstance(digest, bytes) or len(digest) != wire.DIGEST_SIZE:
                _refuse(field, f"expected {wire.DIGEST_SIZE} bytes")
        parties = len(self.cohort)
        if not isinstance(self.cohort, tuple) or not 2 <= parties <= wire.MAX_COHORT:
            _refuse("cohort", f"expected a tuple of 2 to {wire.MAX_COHORT} names")
        if any(a >= b for a, b in pairwise(self.cohort)):
            _refuse("cohort", "expected sorted, unique names")
        for field, value, low, high in (
            ("round", self.round, 0, 2**32 - 1),
            ("threshold", self.threshold, 2, parties),
            ("length", self.length, 1, MAX_LENGTH),
            ("bits", self.bits, 1, 32),
        ):
            if type(value) is not int or not low <= value <= high:
                _refuse(field, f"expected a whole number from {low} to {high}, got {value!r}")

    @property
    def largest(self) -> int:
        """The largest residue, 2^bits - 1; also the bit mask that reduces mod 2^bits."""
        return (1 << self.bits) - 1

    def to_bytes(self) -> bytes:
        return self._encoded

    @cached_property
    def _encoded(self) -> bytes:
        return b"".join(
            (
                wire.header(wire.SESSION),
                wire.text(self.run),
                wire.u32(self.round),
                wire.text(self.label),
                wire.blob(self.model_digest),
                wire.blob(self.settings_digest),
                wire.names(self.cohort),
                wire.u32(self.threshold),
                wire.u32(self.length),
                wire.u32(self.bits),
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Session":
        return _decoded(bytes(data))

    @classmethod
    def _of(cls, reader: wire.Reader) -> "Session":
        session = cls(
            run=reader.text(),
            round=reader.u32(),
            label=reader.text(),
            model_digest=reader.exactly(wire.DIGEST_SIZE),
            settings_digest=reader.exactly(wire.DIGEST_SIZE),
            cohort=reader.names(),
            threshold=reader.u32(),
            length=reader.u32(),
            bits=reader.u32(),
        )
        reader.done()
        return session

    def digest(self) -> bytes:
        """SHA-256 of the canonical encoding, 32 bytes."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        return hashlib.sha256(self.to_bytes()).digest()


# A session is immutable, and the same one comes in every phase of a round.
@lru_cache(maxsize=16)
def _decoded(data: bytes) -> Session:
    return Session._of(wire.Reader(data, wire.SESSION))


def _refuse(field: str, rule: str) -> None:
    raise ProtocolError("bad_session", f"session.{field}: {rule}")
