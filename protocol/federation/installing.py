"""Puts a kit, or a newer roster alone, in place: in a company's home or in the coordinator's folder.

Everything is checked before anything is written. The roster is written last, so that an install that was cut short is
done again from its beginning; files that are replaced are kept in `former/`.

    HOME/                                             FOLDER/
        roster.toml                                       roster.toml
        identity.key                                      identity.key
        transport/own.key, own.pem, node.key              own.key, own.pem
        transport/transport.toml    address               transport.toml          listen
        transport/coordinator.pem                         companies/NAME.pem
                                                          flower/NAME.pub         where Flower is used
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w
from filelock import FileLock, Timeout

from ...errors import InputError
from ...privacy.secure_aggregation.wire import same
from ...settings import parsed_toml, read_text
from .. import fingerprints
from ..expiry import Notice, of_company, of_coordinator
from ..identity import ROSTER_FILE, load_roster, load_signed_roster
from ..names import COORDINATOR
from ..roster import SignedRoster, check_time, difference
from . import kit
from .keys import NEXT, Keys, Role, keep, key_files, make_folder, name_of_home, put

# Files to be removed, and files to be written, by path relative to the folder.
_Changes = tuple[list[str], dict[str, bytes]]

# Where the keys in use come from: they stay, or are those of `next/` or of the kit.
OWN, ROTATED, OF_KIT = "own", "rotated", "kit"


@dataclass(frozen=True)
class Installed:
    """What an install has done."""

    name: str
    roster: SignedRoster
    changes: str  # against the roster before, in words
    keys: str
    written: tuple[str, ...]  # paths relative to the folder
    notices: tuple[Notice, ...]


def install_company(
    path: Path, home: Path, *, fingerprint: str | None = None, now: datetime | None = None
) -> Installed:
    """Install a kit or a roster in a company's home.

    `fingerprint`: the provisioner's, as read out over the phone; needed for the first install.

    Raises:
        InputError: it is altered, expired, older than the installed one, of another provisioner or federation, for
            another company, or does not have this home's keys; nothing was written.
        PrivacyError: others may read a private key.
    """
    opened, named = kit.unpacked(path), name_of_home(home)
    name = named or (opened.manifest.name if opened.manifest else None)
    if name is None:
        rule = f"is a roster alone, and {home} has no keys: fedblocks company request {home} --company NAME"
        raise InputError("kit", str(path), rule)

    def changes() -> _Changes:
        coordinator, settings = opened.roster.content.coordinator, "transport/transport.toml"
        files = {
            "transport/coordinator.pem": coordinator.certificate.encode(),
            settings: _merged(home / settings, address=coordinator.address),
        }
        return [], files

    return _install(path, opened, home, "company", name, fingerprint, now or datetime.now(UTC), changes)


def install_coordinator(
    path: Path, folder: Path, *, fingerprint: str | None = None, now: datetime | None = None
) -> Installed:
    """Install a kit or a roster in the coordinator's folder; raises as `install_company`."""
    opened = kit.unpacked(path)

    def changes() -> _Changes:
        roster = opened.roster.content
        files = {f"companies/{name}.pem": pem.encode() for name, pem in roster.certificates.items()}
        if roster.coordinator.superlink is not None:
            files |= {f"flower/{name}.pub": f"{key}\n".encode() for name, key in roster.node_keys.items()}
        gone = [
            stale.relative_to(folder).as_posix()
            for stale in (*(folder / "companies").glob("*.pem"), *(folder / "flower").glob("*.pub"))
            if stale.relative_to(folder).as_posix() not in files
        ]
        listen = (opened.manifest.listen if opened.manifest else None) or _listens_at(
            roster.coordinator.address
        )
        settings = folder / "transport.toml"
        if not settings.exists():
            files["transport.toml"] = _merged(settings, listen=listen)
        return gone, files

    return _install(
        path, opened, folder, "coordinator", COORDINATOR, fingerprint, now or datetime.now(UTC), changes
    )


def _install(
    path: Path,
    opened: kit.Kit,
    folder: Path,
    role: Role,
    name: str,
    fingerprint: str | None,
    now: datetime,
    changes: Callable[[], _Changes],
) -> Installed:
    manifest, roster = opened.manifest, opened.roster
    if manifest is not None and manifest.role != role:
        rule = f"is for the {manifest.role}; install it with: fedblocks {manifest.role} install"
        raise InputError("kit", str(path), rule)
    _accepted(path, roster, folder, fingerprint, now)
    if manifest is not None and manifest.name != name:
        rule = f"is for {manifest.name!r}, and {folder} is the home of {name!r}; ask for the kit of {name!r}"
        raise InputError("kit", str(path), rule)
    if role == "company":
        _check_member(path, roster, name)
    source, keys = _fitting(path, opened, folder, role, name)
    gone, files = changes()
    if source != OWN:
        files = keys.files() | files
    make_folder(folder)
    try:
        with FileLock(folder / ".install.lock", timeout=0, mode=0o600):
            _accepted(path, roster, folder, fingerprint, now)  # again, for what was installed meanwhile
            before = _members(folder)
            for stale in gone:  # before anything else: who is revoked is refused whatever happens next
                keep(folder, stale)
                (folder / stale).unlink()
            files[ROSTER_FILE] = roster.file
            written = gone + [path for path, content in files.items() if put(folder, path, content)]
            if source == ROTATED:
                shutil.rmtree(folder / NEXT)
    except Timeout:
        raise InputError(
            "kit", str(path), f"another process is installing in {folder}; wait for it"
        ) from None
    members = dict(roster.roster.members)
    words = difference(before, members, of_own="the roster before", of_other="the new one")
    said = words if before else ""
    notices = (of_company if role == "company" else of_coordinator)(folder, now)
    return Installed(name, roster, said, source, tuple(written), tuple(notices))


def _accepted(path: Path, roster: SignedRoster, folder: Path, fingerprint: str | None, now: datetime) -> None:
    """InputError unless this roster may be the first here, or follow the installed one."""
    installed = folder / ROSTER_FILE
    previous = load_signed_roster(installed) if installed.is_file() else None
    found, content = fingerprints.of_provisioner(roster.signer), roster.content
    if fingerprint is not None and not fingerprints.same(
        fingerprints.given("--fingerprint", fingerprint), found
    ):
        rule = (
            f"is not the fingerprint of who signed {path}, {found}; do not install it, call the provisioner"
        )
        raise InputError("--fingerprint", fingerprint, rule)
    if previous is None and fingerprint is None:
        rule = "call the provisioner, and give the fingerprint that you are read out: a first install trusts nobody"
        raise InputError("--fingerprint", None, rule)
    check_time(content, now, str(path))
    if previous is None:
        return
    if not same(previous.signer, roster.signer):
        rule = (
            f"is signed by {found}, the installed roster by {fingerprints.of_provisioner(previous.signer)}; to "
            f"change to another provisioner, move {installed} away and give --fingerprint"
        )
        raise InputError("kit", str(path), rule)
    if content.federation != previous.content.federation:
        rule = f"is of the federation {content.federation!r}, {folder} is in {previous.content.federation!r}"
        raise InputError("kit", str(path), rule)
    if roster.version < previous.version:
        rule = f"version {roster.version} is older than the installed version {previous.version}; ask for the newest"
        raise InputError("kit", str(path), rule)
    if roster.version == previous.version and not same(
        roster.fingerprint.encode(), previous.fingerprint.encode()
    ):
        rule = (
            f"is another version {roster.version} than the installed one ({roster.fingerprint}, installed "
            f"{previous.fingerprint}); call the provisioner, who has to make a new version"
        )
        raise InputError("kit", str(path), rule)


def _check_member(path: Path, roster: SignedRoster, name: str) -> None:
    content = roster.content
    if name in content.revoked:
        rule = f"{name} was revoked in version {content.revoked[name]}; ask the provisioner why"
        raise InputError("kit", str(path), rule)
    if name not in content.companies:
        rule = f"{name} is not in its roster, which has {', '.join(content.companies)}; ask the provisioner"
        raise InputError("kit", str(path), rule)


def _fitting(path: Path, opened: kit.Kit, folder: Path, role: Role, name: str) -> tuple[str, Keys]:
    """The keys that the roster has of this party: those in use, those made for a rotation, or those of the kit."""
    complaints: list[InputError] = []
    for source, place in ((OWN, folder), (ROTATED, folder / NEXT), (OF_KIT, None)):
        try:
            if place is None:
                found = Keys.from_files(role, dict(opened.keys), str(path)) if opened.keys else None
            else:
                found = (
                    Keys.load(role, place) if all((place / n).is_file() for n in key_files(role)) else None
                )
        except InputError as error:
            complaints.append(error)
            continue
        if found is None:
            continue
        other = opened.roster.other_keys(name, found.identity.public, found.certificate, found.node_public)
        if not other:
            return source, found
        rule = (
            f"its roster has another {' and '.join(other)} of {name} than {place or path}; send the provisioner the "
            f"request that `fedblocks {role} request` makes from the keys there, or restore the keys from a copy"
        )
        complaints.append(InputError("kit", str(path), rule))
    if complaints:
        raise complaints[0]
    rule = f"holds no private key, and {folder} has none; restore them, or make a request: fedblocks {role} request"
    raise InputError("kit", str(path), rule)


def _members(folder: Path) -> dict[str, bytes]:
    """Of the installed roster, expired or not; nobody if there is none."""
    path = folder / ROSTER_FILE
    if not path.is_file():
        return {}
    signed = load_signed_roster(path)
    return dict((signed.roster if signed is not None else load_roster(path)).members)


def _merged(path: Path, **values: str) -> bytes:
    """A TOML file with these values, and whatever else was in it; its bytes as they are if it has them already."""
    text = read_text(path.name, path) if path.is_file() else ""
    raw: dict[str, Any] = parsed_toml(path.name, path, text)
    if raw | values == raw and text:
        return path.read_bytes()
    return tomli_w.dumps(raw | values).encode()


def _listens_at(address: str) -> str:
    return f"0.0.0.0:{address.rpartition(':')[2]}"
