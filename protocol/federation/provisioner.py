"""The provisioner: turns requests into a signed roster and a kit for each party.

FOLDER/
    federation.toml         what is wanted (`settings`), written by people
    requests/NAME.request   as companies sent them; coordinator.request is the coordinator's
    provisioner.key         Ed25519, signs rosters and kits; made at the first run
    roster.toml             the newest roster, to be installed by everybody
    kits/NAME.zip           a start-up kit for each company, and coordinator.zip
    trial/NAME/             in a trial alone: the keys of parties that have sent no request
    former/                 earlier rosters, and keys of a trial that were replaced

There is no certificate authority: each party signs its own certificate, the roster carries it and the others pin it,
so that the provisioner's key alone cannot make a second certificate for anybody without a new version of the roster,
which everybody sees. Run again, it makes a new version only where something has changed or the roster ends soon; the
keys of all others stay as they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock, Timeout

from ...errors import InputError
from ...privacy.secure_aggregation import Identity
from ...privacy.secure_aggregation.wire import same
from .. import fingerprints, private_file, signed_text
from ..expiry import WARN_DAYS, Notice, of_certificate
from ..identity import ROSTER_FILE, load_identity, load_signed_roster, save_identity
from ..names import COORDINATOR
from ..roster import CoordinatorEntry, RosterContent, SignedRoster
from ..transport.certificates import fingerprint, hosts_of, public_key_of
from . import kit
from .keys import NEXT, Keys, Role, keep, make_folder, own_keys, put
from .request import SUFFIX, Request
from .settings import FederationSettings

KEY_FILE = "provisioner.key"
# The coordinator's name in files and in federation.toml.
_COORDINATOR = "coordinator"


@dataclass(frozen=True)
class Provisioned:
    """What a run of the provisioner has made."""

    roster: SignedRoster
    previous: SignedRoster | None
    kits: dict[str, Path]
    requests: dict[str, Request]  # by company, and of "coordinator"
    made_here: frozenset[str]  # whose private keys are in its kit
    confirmed: frozenset[str]  # whose fingerprint stands in federation.toml
    path: Path  # of the roster
    notices: tuple[Notice, ...]  # certificates that end soon

    @property
    def changes(self) -> dict[str, list[str]]:
        """Companies added, revoked, and with other keys than before."""
        new = self.roster.content
        if self.previous is None:
            return {"added": sorted(new.companies), "revoked": [], "rotated": []}
        old = self.previous.content
        both = new.companies.keys() & old.companies.keys()
        changed = [n for n in both if _keys_of(new, n) != _keys_of(old, n)]
        if new.coordinator.certificate != old.coordinator.certificate:
            changed.append(_COORDINATOR)
        return {
            "added": sorted(new.companies.keys() - old.companies.keys()),
            "revoked": sorted(old.companies.keys() - new.companies.keys()),
            "rotated": sorted(changed),
        }


def provision(
    path: Path,
    *,
    trial: bool = False,
    rotate: Sequence[str] = (),
    renew: bool = False,
    now: datetime | None = None,
) -> Provisioned:
    """Make roster and kits as the federation.toml at `path` says.

    `trial`: make the keys of whoever has sent no request; `rotate`: make these parties' trial keys anew; `renew`: a
    new version of the roster though nothing has changed.

    Raises:
        InputError: what is wrong in federation.toml or a request, or whose request is missing; nothing was written.
        PrivacyError: others may read a private key.
    """
    settings, folder = FederationSettings.load(path), path.parent
    lock = FileLock(folder / ".provision.lock", timeout=0, mode=0o600)
    try:
        with lock:
            return _provision(settings, folder, trial, rotate, renew, now or datetime.now(UTC))
    except Timeout:
        raise InputError(
            "federation", str(path), "is being provisioned by another process; wait for it"
        ) from None


def _provision(
    settings: FederationSettings, folder: Path, trial: bool, rotate: Sequence[str], renew: bool, now: datetime
) -> Provisioned:
    names = (*settings.companies, _COORDINATOR)
    previous = _previous(folder)
    requests = {name: found for name in names if (found := _request(settings, folder, name, now)) is not None}
    missing = [name for name in names if name not in requests]
    if missing and not trial:
        raise InputError(
            "requests", ", ".join(missing), f"no request of theirs in {folder / 'requests'}; each makes its own with "
            "`fedblocks company request HOME --company NAME` or `fedblocks coordinator request FOLDER`",
        )  # fmt: skip
    for name in rotate:
        if name not in missing:
            rule = "has no keys of a trial here; it makes a new request itself: fedblocks company request --rotate"
            raise InputError("--rotate", name, rule)
    keys = {name: _trial_keys(settings, folder, name, renewed=name in rotate) for name in missing}
    requests |= {name: Request.of(found) for name, found in keys.items()}
    for name in keys:
        requests[name].check_time(str(folder / "trial" / name), now)
    _check_together(settings, requests)
    provisioner = _provisioner_key(folder)
    roster = _roster(settings, requests, previous, provisioner, renew, now)
    if roster is not previous:
        put(folder, ROSTER_FILE, roster.file)
    return Provisioned(
        roster=roster,
        previous=previous,
        kits=_kits(settings, folder, roster, provisioner, keys),
        requests=requests,
        made_here=frozenset(keys),
        confirmed=frozenset(name for name in requests if settings.confirmed(name) is not None),
        path=folder / ROSTER_FILE,
        notices=_notices(requests, frozenset(keys), now),
    )


def _previous(folder: Path) -> SignedRoster | None:
    path = folder / ROSTER_FILE
    if not path.is_file():
        return None
    roster = load_signed_roster(path)
    if roster is None:
        raise InputError("roster", str(path), "was written by hand; move it out of the provisioner's folder")
    if not (folder / KEY_FILE).is_file():
        rule = "is missing, and signed the roster beside it; restore it from a copy, or start in a new folder"
        raise InputError("key", str(folder / KEY_FILE), rule)
    if not same(load_identity(folder / KEY_FILE).public, roster.signer):
        raise InputError(
            "roster", str(path), f"is not signed with {KEY_FILE} beside it; restore both from a copy"
        )
    return roster


def _request(settings: FederationSettings, folder: Path, name: str, now: datetime) -> Request | None:
    path = folder / "requests" / f"{name}{SUFFIX}"
    if not path.is_file():
        return None
    request = Request.parse(signed_text.read("request", path), str(path))
    expected = COORDINATOR if name == _COORDINATOR else name
    if request.name != expected:
        raise InputError("request", str(path), f"is of {request.name!r}, expected one of {expected!r}")
    request.check_time(str(path), now)
    wanted = settings.confirmed(name)
    if wanted is not None and not fingerprints.same(wanted, request.fingerprint):
        rule = f"has the fingerprint {request.fingerprint}, federation.toml says {wanted}; call {name} and compare"
        raise InputError("request", str(path), rule)
    return request


def _trial_keys(settings: FederationSettings, folder: Path, name: str, *, renewed: bool) -> Keys:
    home = folder / "trial" / name
    role: Role = "coordinator" if name == _COORDINATOR else "company"
    made_out = COORDINATOR if name == _COORDINATOR else name
    hosts = [settings.coordinator.host] if name == _COORDINATOR else []
    found = own_keys(role, home, made_out, days=settings.valid_days, hosts=hosts, rotate=renewed)
    if renewed and (home / NEXT).is_dir():
        for path, content in found.files().items():
            put(home, path, content)
        shutil.rmtree(home / NEXT)
    return found


def _check_together(settings: FederationSettings, requests: dict[str, Request]) -> None:
    """Each party has keys of its own, and a SuperLink's host is in the coordinator's certificate."""
    owners: dict[bytes | str, str] = {}
    for name, request in requests.items():
        for key in (request.content.identity, public_key_of(request.certificate), request.content.node_key):
            if key is not None and owners.setdefault(key, name) != name:
                raise InputError(
                    "requests", name, f"has a key that {owners[key]} has too; each makes its own"
                )
    host = settings.coordinator.host
    certificate = requests[_COORDINATOR].certificate
    if settings.coordinator.superlink is not None and host not in hosts_of(certificate):
        rule = (
            "is not in the coordinator's certificate, which Flower checks; make it again with "
            f"`fedblocks coordinator request FOLDER --host {host} --rotate` (in a trial: --rotate coordinator)"
        )
        raise InputError("coordinator.address", settings.coordinator.address, rule)


def _provisioner_key(folder: Path) -> Identity:
    path = folder / KEY_FILE
    if not path.exists():
        save_identity(path, Identity.generate())
    return load_identity(path)


def _roster(
    settings: FederationSettings,
    requests: dict[str, Request],
    previous: SignedRoster | None,
    provisioner: Identity,
    renew: bool,
    now: datetime,
) -> SignedRoster:
    """The previous roster if it says the same for long enough, else the next version."""
    now = now.astimezone(UTC).replace(microsecond=0)
    version = 1 if previous is None else previous.version + 1
    revoked: dict[str, int] = {}
    if previous is not None:
        gone = [name for name in previous.content.companies if name not in requests]
        revoked = dict(previous.content.revoked) | dict.fromkeys(gone, version)
        revoked = {name: since for name, since in sorted(revoked.items()) if name not in requests}
    names, lead = sorted(settings.companies), requests[_COORDINATOR].content
    content = RosterContent(
        federation=settings.name,
        version=version,
        issued=now,
        expires=now + timedelta(days=settings.valid_days),
        companies={name: requests[name].content.identity for name in names},
        certificates={name: requests[name].content.certificate for name in names},
        node_keys={name: requests[name].content.node_key or "" for name in names},
        revoked=revoked,
        coordinator=CoordinatorEntry(
            address=settings.coordinator.address,
            superlink=settings.coordinator.superlink,
            identity=lead.identity,
            certificate=lead.certificate,
        ),
    )
    if previous is not None and not renew:
        old = previous.content
        as_old = content.model_copy(update={k: getattr(old, k) for k in ("version", "issued", "expires")})
        long_enough = old.expires - now > min(timedelta(days=WARN_DAYS), (old.expires - old.issued) / 3)
        if as_old == old and old.expires - old.issued == content.expires - content.issued and long_enough:
            return previous
    return SignedRoster.sign(content, provisioner)


def _kits(
    settings: FederationSettings,
    folder: Path,
    roster: SignedRoster,
    provisioner: Identity,
    keys: dict[str, Keys],
) -> dict[str, Path]:
    kits = folder / "kits"
    make_folder(kits)
    made = {}
    for name in (*settings.companies, _COORDINATOR):
        role: Role = "coordinator" if name == _COORDINATOR else "company"
        private = keys[name].files() if name in keys else None
        content = kit.packed(
            role,
            COORDINATOR if name == _COORDINATOR else name,
            roster,
            provisioner,
            listen=settings.coordinator.listens_at if role == "coordinator" else None,
            keys=private,
        )
        made[name] = kits / f"{name}.zip"
        private_file.write(made[name], content)
    for stale in kits.glob("*.zip"):
        if stale not in made.values():
            keep(folder, f"kits/{stale.name}")
            stale.unlink()
    return made


def _notices(requests: dict[str, Request], made_here: frozenset[str], now: datetime) -> tuple[Notice, ...]:
    found = []
    for name, request in requests.items():
        here = f"fedblocks provision federation.toml --trial --rotate {name}"
        mend = here if name in made_here else f"{name} makes a new request with --rotate"
        found.append(of_certificate(request.certificate, name, f"requests/{name}{SUFFIX}", mend, now))
    return tuple(notice for notice in found if notice is not None)


def _keys_of(content: RosterContent, name: str) -> tuple[object, ...]:
    certificate = SignedRoster(content, b"", b"").certificates[name]
    return content.companies[name], fingerprint(certificate), content.node_keys.get(name)
