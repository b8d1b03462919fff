"""Text files with a signature: a first line with public key and signature, then the text that is signed.

    # fedblocks roster, signed with Ed25519: PUBLIC_KEY SIGNATURE
    ...

The signature covers the bytes of the text as they are, so no canonical form is needed; the first line is a comment in
TOML. It also covers the kind, so that a text signed as one kind is not valid as another, and begins with a domain
that no statement of secure aggregation begins with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..errors import InputError
from ..privacy.secure_aggregation import Identity

LARGEST = 4 << 20

_DOMAIN = b"fedblocks signed text\0"
_HEADER = "# fedblocks {kind}, signed with Ed25519: {public} {signature}\n"
_FIRST_LINE = re.compile(
    rb"# fedblocks ([a-z ]{1,32}), signed with Ed25519: ([0-9a-f]{64}) ([0-9a-f]{128})\n"
)


@dataclass(frozen=True)
class SignedText:
    """A text with a valid signature of `signer`, a public key; whether that key is to be trusted is not said."""

    kind: str
    text: str
    signer: bytes
    content: bytes


def sign(kind: str, text: str, identity: Identity) -> SignedText:
    if "\r" in text:
        raise InputError(kind, text, "a text to be signed has no carriage return")
    body = text.encode()
    signature = identity.sign(_statement(kind, body))
    header = _HEADER.format(kind=kind, public=identity.public.hex(), signature=signature.hex())
    return SignedText(kind, text, identity.public, header.encode() + body)


def read(kind: str, path: Path) -> bytes:
    """The content of a file that is to be `opened`, or the beginning of one that is too large; InputError."""
    try:
        with path.open("rb") as file:
            return file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(kind, str(path), f"cannot be read ({type(error).__name__})") from None


def is_signed(content: bytes) -> bool:
    return content.startswith(b"# fedblocks ")


def opened(kind: str, content: bytes, where: str) -> SignedText:
    """The signed text in a file of this kind, its signature checked.

    Raises:
        InputError: it is too large, of another kind, or not what was signed.
    """
    if len(content) > LARGEST:
        raise InputError(kind, where, f"larger than {LARGEST >> 20} MB; ask for the file again")
    content = content.replace(b"\r\n", b"\n")  # as mail programs leave them; nothing that is signed has one
    first = _FIRST_LINE.match(content)
    if first is None:
        raise InputError(kind, where, f"not a signed {kind}; ask for the file again")
    if first[1] != kind.encode():
        raise InputError(kind, where, f"is a {first[1].decode()}, expected a {kind}")
    signer, signature, body = (
        bytes.fromhex(first[2].decode()),
        bytes.fromhex(first[3].decode()),
        content[first.end() :],
    )
    try:
        Ed25519PublicKey.from_public_bytes(signer).verify(signature, _statement(kind, body))
        return SignedText(kind, body.decode(), signer, content)
    except (InvalidSignature, ValueError):
        rule = "altered after it was signed, or damaged on its way; ask for the file again, never mend it by hand"
        raise InputError(kind, where, rule) from None


def _statement(kind: str, body: bytes) -> bytes:
    return _DOMAIN + kind.encode() + b"\0" + body
