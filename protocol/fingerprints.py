"""Fingerprints to be read out over the phone: 32 hexadecimal digits in groups of four.

    3f2a 91bc 07d4 e6a0 1c55 98fe 4b03 d27a

The first 128 bits of a SHA-256: nobody can find another key or request with the fingerprint of a given one.
"""

from __future__ import annotations

import hashlib
import hmac
import re

from ..errors import InputError

_DIGITS, _GROUP = 32, 4


def fingerprint(purpose: str, content: bytes) -> str:
    """The fingerprint of some content; the same content has another one for another purpose."""
    digest = hashlib.sha256(b"fedblocks fingerprint\0" + purpose.encode() + b"\0" + content).hexdigest()
    return " ".join(digest[i : i + _GROUP] for i in range(0, _DIGITS, _GROUP))


def of_provisioner(public: bytes) -> str:
    """Of the key that signs rosters and kits."""
    return fingerprint("provisioner", public)


def given(field: str, text: str) -> str:
    """A fingerprint as somebody typed it, in its usual form; InputError if it is none."""
    digits = re.sub(r"[\s:.-]", "", text).lower()
    if not re.fullmatch(f"[0-9a-f]{{{_DIGITS}}}", digits):
        raise InputError(
            field, text, f"expected a fingerprint: {_DIGITS} hexadecimal digits, in groups of {_GROUP}"
        )
    return " ".join(digits[i : i + _GROUP] for i in range(0, _DIGITS, _GROUP))


def same(one: str, other: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())
