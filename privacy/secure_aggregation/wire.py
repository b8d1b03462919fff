"""Canonical encoding of everything that is sent, signed or hashed.

Not part of the paper: Bonawitz et al. (CCS 2017), Fig. 4, does not specify the encoding. Here every value
has exactly one encoding and every encoding exactly one meaning, so a digest binds the content:

    b"FBSA" | version | kind | fields ...
    u32    4 bytes, big-endian
    blob   u32 length, bytes
    text   blob of UTF-8, 1 to 128 bytes
    table  u32 count, then (text, blob) with strictly increasing names

Decoders trust nothing: sizes are bounded before anything is read, no byte may be left over, and whatever does not
fit raises ProtocolError("malformed").
"""

import hmac
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise

from ...errors import ProtocolError

VERSION = 2
MAGIC = b"FBSA" + bytes([VERSION])
DOMAIN = f"fedblocks secure aggregation v{VERSION}"
MAX_MESSAGE = 1 << 24
MAX_NAME = 128
MAX_COHORT = 1000
MAX_ROSTER = 10_000
DIGEST_SIZE = 32

# One byte for the kind of a message, so that no message can be read as one of another kind.
SESSION, ADVERT, SURVIVORS, UNMASK_SHARES, CHANNEL_KEYS, COMPANY_STATE = range(1, 7)
CONFIRMATION, CONFIRMATIONS, ROSTER, TRANSCRIPT = range(7, 11)


def same(left: bytes, right: bytes) -> bool:
    """Equality in constant time."""
    return hmac.compare_digest(left, right)


def header(kind: int) -> bytes:
    return MAGIC + bytes([kind])


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def blob(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def blobs(*values: bytes) -> bytes:
    return b"".join([len(value).to_bytes(4, "big") + value for value in values])


@lru_cache(maxsize=4 * MAX_COHORT)  # names come again and again
def text(value: str) -> bytes:
    return blob(value.encode())


@lru_cache(maxsize=32)
def heading(purpose: str) -> bytes:
    """What everything that is signed, or derived, for this purpose begins with."""
    return text(DOMAIN) + text(purpose)


def names(values: tuple[str, ...]) -> bytes:
    return u32(len(values)) + b"".join(map(text, values))


def table(values: Mapping[str, bytes]) -> bytes:
    rows = [(text(name), values[name]) for name in sorted(values)]
    return u32(len(rows)) + b"".join([name + len(value).to_bytes(4, "big") + value for name, value in rows])


def is_name(value: object) -> bool:
    """True for text that `text` can encode and `Reader.text` accepts."""
    try:
        return isinstance(value, str) and 1 <= len(value.encode()) <= MAX_NAME
    except UnicodeEncodeError:
        return False


class Reader:
    """Reads one message in order: `Reader(data, ADVERT)`, the fields, then `done()`."""

    def __init__(self, data: bytes, kind: int) -> None:
        if not isinstance(data, bytes) or len(data) > MAX_MESSAGE:
            raise ProtocolError("malformed", f"a message is at most {MAX_MESSAGE} bytes")
        self._data = data
        self._at = 0
        if self._take(len(MAGIC) + 1) != header(kind):
            raise ProtocolError("malformed", f"this is not a version {VERSION} message of kind {kind}")

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise ProtocolError("malformed", "the message ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def u32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def blob(self, smallest: int, largest: int) -> bytes:
        start = self._at + 4
        size = int.from_bytes(self._data[self._at : start], "big")
        end = start + size
        if end <= len(self._data) and smallest <= size <= largest:
            self._at = end
            return self._data[start:end]
        size = self.u32()  # too short even for this, or for what it says, or of another size
        if not smallest <= size <= largest:
            raise ProtocolError("malformed", f"a field has {size} bytes, not {smallest} to {largest}")
        return self._take(size)

    def exactly(self, size: int) -> bytes:
        return self.blob(size, size)

    def text(self) -> str:
        return _decoded(self.blob(1, MAX_NAME))

    def _count(self) -> int:
        count = self.u32()
        if count > MAX_COHORT:
            raise ProtocolError("malformed", f"{count} entries are more than {MAX_COHORT}")
        return count

    def names(self) -> tuple[str, ...]:
        return rising(tuple(self.text() for _ in range(self._count())))

    def table(self, size: int) -> dict[str, bytes]:
        """Names and blobs of exactly `size` bytes."""
        count = self._count()
        rows: dict[str, bytes] = {}
        for _ in range(count):
            name = self.text()
            rows[name] = self.blob(size, size)
        if len(rows) != count or sorted(rows) != list(rows):
            raise _unsorted()
        return rows

    def done(self) -> None:
        if self._at != len(self._data):
            raise ProtocolError("malformed", "bytes are left over after the last field")


def rising(values: tuple[str, ...]) -> tuple[str, ...]:
    """`values`, if they are in the only accepted order: strictly increasing, so without repeats."""
    if any(a >= b for a, b in pairwise(values)):
        raise _unsorted()
    return values


def _unsorted() -> ProtocolError:
    return ProtocolError("malformed", "names are not sorted and unique")


@lru_cache(maxsize=4 * MAX_COHORT)
def _decoded(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise ProtocolError("malformed", "a name is not UTF-8") from None
