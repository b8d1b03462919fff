"""The keys of one party, company or coordinator: made on its own machine, never overwritten.

identity.key               Ed25519, signs (`protocol.identity`)
transport/own.key          P-256, with its certificate own.pem, for the data plane; the coordinator's also for a
                           SuperLink (a coordinator's folder has no `transport/`)
transport/node.key         P-384 in OpenSSH's format, for Flower's node authentication; a company's alone
next/                      the same files, made for a rotation and not in use before a roster has them
former/                    what was replaced, with the beginning of its SHA-256 in its name
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ...errors import InputError, PrivacyError, ProtocolError
from ...privacy.secure_aggregation import Identity
from .. import private_file
from ..identity import IDENTITY_FILE
from ..transport.certificates import (
    CERTIFICATE_FILE,
    DAYS,
    KEY_FILE,
    OwnCertificate,
    certificate_of,
    name_in,
    read,
)

Role = Literal["company", "coordinator"]

NODE_KEY_FILE = "node.key"
NEXT, FORMER = "next", "former"


def place(role: Role, name: str) -> str:
    """The path of one of the files of the data plane, relative to its party's folder."""
    return name if role == "coordinator" else f"transport/{name}"


def key_files(role: Role) -> tuple[str, ...]:
    """All files of a party's keys, relative to its folder."""
    names = (
        (KEY_FILE, CERTIFICATE_FILE) if role == "coordinator" else (KEY_FILE, CERTIFICATE_FILE, NODE_KEY_FILE)
    )
    return (IDENTITY_FILE, *(place(role, name) for name in names))


@dataclass(frozen=True)
class Keys:
    """The private keys of one party, and its certificate."""

    role: Role
    identity: Identity
    own: OwnCertificate
    node: bytes | None = field(repr=False, default=None)

    @classmethod
    def create(
        cls,
        role: Role,
        name: str,
        *,
        days: int = DAYS,
        hosts: Sequence[str] = (),
        identity: Identity | None = None,
    ) -> Keys:
        """Fresh keys, with the given identity if there is one already."""
        node = new_node_key() if role == "company" else None
        own = OwnCertificate.create(name, days=days, hosts=hosts)
        return cls(role, identity or Identity.generate(), own, node)

    @classmethod
    def from_files(cls, role: Role, files: dict[str, bytes], where: str) -> Keys:
        """From the contents of `key_files`; InputError that quotes none of them."""
        try:
            identity = Identity(bytes.fromhex(files[IDENTITY_FILE].decode("ascii").strip()))
            own = OwnCertificate(files[place(role, CERTIFICATE_FILE)], files[place(role, KEY_FILE)])
            node = files[place(role, NODE_KEY_FILE)] if role == "company" else None
            found = cls(role, identity, own, node)
            _ = found.node_public
            fits = own.fits()
        except KeyError as error:
            raise InputError("keys", where, f"{error.args[0]} is missing") from None
        except (ValueError, ProtocolError, UnsupportedAlgorithm):
            raise InputError("keys", where, "a key is not of its form; restore it from a copy") from None
        if not fits:
            raise InputError(
                "keys", where, f"{KEY_FILE} is not the key of {CERTIFICATE_FILE}; restore both together"
            )
        return found

    @classmethod
    def load(cls, role: Role, folder: Path) -> Keys:
        """From a party's folder.

        Raises:
            InputError: a file is missing or not of its form.
            PrivacyError: others may read a private key.
        """
        files = {}
        for name in key_files(role):
            path = folder / name
            files[name] = read(path)
            mode = private_file.mode_for_others(path)
            if mode is not None and not name.endswith(CERTIFICATE_FILE):
                raise PrivacyError(f"{path} may be read by others (mode {mode:03o}); expected 600")
        return cls.from_files(role, files, str(folder))

    def files(self) -> dict[str, bytes]:
        """Contents by the paths of `key_files`."""
        values = (f"{self.identity.private_bytes().hex()}\n".encode(), self.own.key, self.own.certificate)
        every = (*values, self.node) if self.node is not None else values
        return dict(zip(key_files(self.role), every, strict=True))

    def save(self, folder: Path) -> None:
        """Write what is missing in the folder; files that are there stay as they are."""
        for name, content in self.files().items():
            path = folder / name
            make_folder(path.parent)
            if not path.exists():
                private_file.create(path, content)

    @property
    def certificate(self) -> x509.Certificate:
        return certificate_of(self.own.certificate, CERTIFICATE_FILE)

    @property
    def name(self) -> str:
        return name_in(self.certificate)

    @property
    def node_public(self) -> str | None:
        """The public half of the node key, in OpenSSH's format; None for a coordinator."""
        if self.node is None:
            return None
        key = serialization.load_ssh_private_key(self.node, None)
        form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        return key.public_key().public_bytes(*form).decode()


def own_keys(
    role: Role, folder: Path, name: str, *, days: int = DAYS, hosts: Sequence[str] = (), rotate: bool = False
) -> Keys:
    """The keys of a party, made if there are none; or, to `rotate`, those in `next/`, which are not in use yet.

    Raises:
        InputError: there are keys of another name, or files that do not fit together.
        PrivacyError: others may read a private key.
    """
    target = folder / NEXT if rotate and all((folder / n).is_file() for n in key_files(role)) else folder
    if target != folder and _has_ended(
        target / place(role, CERTIFICATE_FILE)
    ):  # a rotation that nobody took up
        for path in key_files(role):
            keep(folder, f"{NEXT}/{path}")
        shutil.rmtree(target)
    identity = _identity_in(target)
    present = [n for n in key_files(role) if (target / n).exists()]
    if place(role, CERTIFICATE_FILE) in present:
        made_out = name_in(certificate_of(read(target / place(role, CERTIFICATE_FILE)), str(target)))
        if made_out != name:
            raise InputError("name", name, f"the certificate in {target} is made out to {made_out!r}")
    fresh = Keys.create(role, name, days=days, hosts=hosts, identity=identity)
    if (place(role, KEY_FILE) in present) != (place(role, CERTIFICATE_FILE) in present):
        rule = f"has one of {KEY_FILE} and {CERTIFICATE_FILE} alone; restore the other from a copy, or remove both"
        raise InputError("keys", str(target), rule)
    make_folder(target)
    fresh.save(target)
    return Keys.load(role, target)


def make_folder(folder: Path) -> None:
    """Make a folder that is its owner's alone, and those around it that are missing."""
    for part in (*reversed(folder.parents), folder):
        if not part.is_dir():
            part.mkdir(mode=0o700, exist_ok=True)


def put(folder: Path, name: str, content: bytes) -> bool:
    """Write the file `name` in a party's folder, keeping what it held; False if it holds `content` already."""
    path = folder / name
    if path.is_file() and path.read_bytes() == content:
        return False
    keep(folder, name)
    make_folder(path.parent)
    private_file.write(path, content)
    return True


def keep(folder: Path, name: str) -> None:
    """Copy the file `name` of a party's folder, if there is one, to `former/`."""
    path = folder / name
    if not path.is_file():
        return
    content = path.read_bytes()
    copy = folder / FORMER / f"{name}.{hashlib.sha256(content).hexdigest()[:12]}"
    make_folder(copy.parent)
    private_file.write(copy, content)


def new_node_key() -> bytes:
    """A private key for Flower's node authentication, as `flower-supernode` reads it."""
    key = ec.generate_private_key(ec.SECP384R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def check_node_key(name: str, public: str) -> None:
    """InputError unless it is a public P-384 key in OpenSSH's format."""
    try:
        key = serialization.load_ssh_public_key(public.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise InputError("node_key", name, "expected a P-384 key in OpenSSH's format")


def name_of_home(home: Path) -> str | None:
    """The company that a home is of, by its policy, else by its certificate; None for a new home."""
    from ...settings import parsed_toml, read_text

    policy = home / "policy.toml"
    if policy.is_file():
        named = parsed_toml("policy", policy, read_text("policy", policy)).get("company")
        if isinstance(named, str):
            return named
    certificate = home / "transport" / CERTIFICATE_FILE
    return name_in(certificate_of(read(certificate), str(certificate))) if certificate.is_file() else None


def _has_ended(certificate: Path) -> bool:
    if not certificate.is_file():
        return False
    return certificate_of(read(certificate), str(certificate)).not_valid_after_utc <= datetime.now(UTC)


def _identity_in(folder: Path) -> Identity | None:
    from ..identity import load_identity

    path = folder / IDENTITY_FILE
    return load_identity(path) if path.exists() else None
