"""A company's identity key and pinned roster, as files in its own home.

    identity.key    64 hexadecimal digits, the Ed25519 private key; only its owner may read it
    roster.toml     [companies], a line a company: name = "64 hexadecimal digits", the Ed25519 public key; or the
                    provisioner's signed roster (`roster`), which has more tables and an expiry

Both are the company's own: it writes the roster by hand, with public keys exchanged out of band, or installs one
whose signature it has checked. No message ever changes either file.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import tomli_w

from ..errors import InputError, PrivacyError, ProtocolError
from ..privacy.secure_aggregation import Identity, Member, Roster
from ..settings import parsed_toml, read_text
from . import private_file, signed_text
from .roster import SignedRoster, check_time

IDENTITY_FILE = "identity.key"
ROSTER_FILE = "roster.toml"


def load_member(home: Path, name: str) -> Member:
    """The company `name` with the identity and roster of this home.

    Raises:
        InputError: a file is missing or not of its form.
        PrivacyError: others may read the key.
        ProtocolError: the roster does not have this identity under this name.
    """
    return Member(name, load_identity(home / IDENTITY_FILE), load_roster(home / ROSTER_FILE))


def save_identity(path: Path, identity: Identity) -> None:
    """Write a new file that only its owner may read; FileExistsError if there is one."""
    private_file.create(path, f"{identity.private_bytes().hex()}\n".encode("ascii"))


def load_identity(path: Path) -> Identity:
    try:
        mode = private_file.mode_for_others(path)
        if mode is not None:
            raise PrivacyError(f"{path} may be read by others (mode {mode:03o}); expected 600")
        return Identity(bytes.fromhex(path.read_text("ascii").strip()))
    except FileNotFoundError:
        raise InputError("identity", str(path), "no such file") from None
    except (ValueError, ProtocolError):  # the content itself is never quoted
        raise InputError("identity", str(path), "expected 64 hexadecimal digits") from None


def save_roster(path: Path, members: Mapping[str, bytes]) -> None:
    companies = {name: members[name].hex() for name in sorted(members)}
    private_file.write(path, tomli_w.dumps({"companies": companies}).encode())


def load_roster(path: Path) -> Roster:
    """The members of a roster; InputError for one that is not of its form, altered, or has expired."""
    signed = load_signed_roster(path)
    if signed is None:
        text = read_text("roster", path)
        try:
            return _shared(text)
        except InputError:
            return _parsed(path, text)  # refused again, by the file's own name
    check_time(signed.content, datetime.now(UTC), str(path))
    return signed.roster


def load_signed_roster(path: Path) -> SignedRoster | None:
    """The roster if a provisioner has signed it, expired or not; None for one that was written by hand."""
    text = read_text("roster", path)
    return _signed(path, text) if signed_text.is_signed(text.encode()) else None


@lru_cache(maxsize=128)
def _signed(path: Path, text: str) -> SignedRoster:
    return SignedRoster.parse(text.encode(), str(path))


@lru_cache(maxsize=32)
def _shared(text: str) -> Roster:
    """One for all homes in this process that have the same: of thousands of companies each is large."""
    return _parsed(Path(ROSTER_FILE), text)


def _parsed(path: Path, text: str) -> Roster:
    raw = parsed_toml("roster", path, text)
    companies = raw.get("companies")
    if set(raw) != {"companies"} or not isinstance(companies, dict):
        raise InputError("roster", sorted(raw), "expected one table, [companies]")
    members = {}
    for name, digits in companies.items():
        try:
            members[name] = bytes.fromhex(digits)
        except (TypeError, ValueError):
            raise InputError(f"roster.{name}", digits, "expected 64 hexadecimal digits") from None
    try:
        return Roster(members)
    except ProtocolError as error:
        raise InputError("roster", sorted(members), str(error)) from None
