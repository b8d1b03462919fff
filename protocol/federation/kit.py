"""A start-up kit: a zip for one party, with the signed roster and a signed manifest that says for whom it is.

    kit.toml       signed text: federation, role, name, listen; SHA-256 of every other file
    roster.toml    the signed roster
    ...            in a trial alone: the party's private keys, under the paths of `key_files`

Reading one writes nothing. Names in a zip are never used as paths: only the names above are read, each once, within
fixed sizes, and each must be in the manifest. The same content gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tomli_w
from pydantic import BaseModel, ConfigDict

from ...errors import InputError
from ...privacy.secure_aggregation import Identity
from ...privacy.secure_aggregation.wire import same
from ...settings import parsed_toml, validated
from .. import signed_text
from ..identity import ROSTER_FILE
from ..names import COORDINATOR
from ..roster import SignedRoster
from ..transport.address import Address
from .keys import Role, key_files

KIND = "kit"
MANIFEST = "kit.toml"

LARGEST_KIT = 8 << 20
_LARGEST_KEY = 1 << 16
_MOST_FILES = 16


class Manifest(BaseModel):
    """What the provisioner signs of a kit."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    federation: str
    role: Literal["company", "coordinator"]
    name: str
    listen: Address | None = None
    files: dict[str, str]


@dataclass(frozen=True)
class Kit:
    """A roster, and for whom it is; `keys`: contents of private files by path, in a trial alone."""

    manifest: Manifest | None
    roster: SignedRoster
    keys: Mapping[str, bytes] = field(repr=False)


def packed(
    role: Role,
    name: str,
    roster: SignedRoster,
    provisioner: Identity,
    *,
    listen: str | None = None,
    keys: Mapping[str, bytes] | None = None,
) -> bytes:
    """The bytes of a kit."""
    files = {ROSTER_FILE: roster.file, **(keys or {})}
    manifest: dict[str, object] = {"federation": roster.content.federation, "role": role, "name": name}
    if listen is not None:
        manifest["listen"] = listen
    manifest["files"] = {path: hashlib.sha256(files[path]).hexdigest() for path in sorted(files)}
    signed = signed_text.sign(KIND, tomli_w.dumps(manifest), provisioner)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, content in ((MANIFEST, signed.content), *sorted(files.items())):
            entry = zipfile.ZipInfo(path, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o600 << 16  # wherever it is made
            archive.writestr(entry, content)
    return buffer.getvalue()


def unpacked(path: Path) -> Kit:
    """A kit, or a roster alone, from a file; signatures are checked, not whose they are.

    Raises:
        InputError: it is too large, altered, or has anything in it that a kit does not have.
    """
    content = _read(path)
    if signed_text.is_signed(content):
        return Kit(None, SignedRoster.parse(content, str(path)), {})
    files = _entries(content, str(path))
    try:
        signed = signed_text.opened(KIND, files.pop(MANIFEST), str(path))
        roster = SignedRoster.parse(files[ROSTER_FILE], str(path))
    except KeyError as error:
        raise InputError(
            KIND, str(path), f"{error.args[0]} is missing in it; ask for the kit again"
        ) from None
    manifest = validated(Manifest, parsed_toml(KIND, path, signed.text))
    if not same(signed.signer, roster.signer):
        raise InputError(
            KIND, str(path), "its manifest and its roster are signed with two keys; ask for it again"
        )
    if manifest.files.keys() != files.keys():
        raise InputError(KIND, str(path), "holds other files than its manifest says; ask for the kit again")
    for name, found in files.items():
        if not same(hashlib.sha256(found).hexdigest().encode(), manifest.files[name].encode()):
            raise InputError(KIND, str(path), f"{name} in it was altered; ask for the kit again")
    if manifest.federation != roster.content.federation:
        raise InputError(
            KIND, str(path), "its manifest and its roster are of two federations; ask for it again"
        )
    if (manifest.role == "coordinator") != (manifest.name == COORDINATOR):
        raise InputError(
            KIND, str(path), f"a kit of {manifest.name!r} for a {manifest.role}; ask for it again"
        )
    del files[ROSTER_FILE]
    if files and files.keys() != set(key_files(manifest.role)):
        raise InputError(KIND, str(path), "holds some of a party's keys, not all; ask for the kit again")
    return Kit(manifest, roster, files)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_KIT + 1)
    except OSError as error:
        raise InputError(KIND, str(path), f"cannot be read ({type(error).__name__})") from None
    if len(content) > LARGEST_KIT:
        raise InputError(
            KIND, str(path), f"larger than {LARGEST_KIT >> 20} MB, which no kit is; ask for it again"
        )
    return content


def _entries(content: bytes, where: str) -> dict[str, bytes]:
    """The files of a zip in memory: only expected names, each once and stored as it is, none above its size."""
    limits = dict.fromkeys((*key_files("company"), *key_files("coordinator")), _LARGEST_KEY)
    limits |= {MANIFEST: _LARGEST_KEY, ROSTER_FILE: signed_text.LARGEST}
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if len(entries) > _MOST_FILES:
                raise InputError(
                    KIND, where, f"holds {len(entries)} files, which no kit does; do not open it"
                )
            for entry in entries:
                name = entry.orig_filename
                if name not in limits or name in found:
                    raise InputError(KIND, where, f"holds {name!r}, which no kit does; do not open it")
                # A kit stores its files: nothing in it can unpack to more than its own size.
                kind = entry.external_attr >> 28
                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or kind not in (0, 8):
                    raise InputError(
                        KIND, where, f"{name} in it is compressed, encrypted or a link; do not open it"
                    )
                if entry.file_size > limits[name]:
                    raise InputError(KIND, where, f"{name} in it is larger than it may be; do not open it")
                with archive.open(entry) as file:
                    found[name] = file.read(limits[name] + 1)
                if len(found[name]) > limits[name]:
                    raise InputError(KIND, where, f"{name} in it is larger than it may be; do not open it")
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, ValueError, RuntimeError):
        raise InputError(KIND, where, "not a kit, or damaged on its way; ask for it again") from None
    return found
