"""Identity, roster and certificates: that they are there, belong together and are valid."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ...errors import FedblocksError, InputError
from ...privacy.secure_aggregation import Roster
from ...protocol import fingerprints
from ...protocol.expiry import of_company
from ...protocol.identity import IDENTITY_FILE, ROSTER_FILE, load_identity, load_roster, load_signed_roster
from ...protocol.names import COORDINATOR
from ...protocol.roster import SignedRoster
from ...protocol.transport.certificates import (
    CERTIFICATE_FILE,
    KEY_FILE,
    certificate_of,
    fingerprint,
    name_in,
)
from ..endpoint import FOLDER, Endpoint
from ..policy import Policy
from .findings import Findings


def check_keys(
    home: Path, policy: Policy | None, findings: Findings, spoken: str | None, now: datetime
) -> Roster | None:
    """The roster, if it can be used. `spoken`: the provisioner's fingerprint as it was read out."""
    quoted = shlex.quote(str(home))
    install = f"install the kit or roster that the provisioner sent: fedblocks company install KIT {quoted}"
    roster = None
    if not (home / ROSTER_FILE).is_file():
        findings.error("no_roster", home / ROSTER_FILE, "no such file", install)
    else:
        with findings.as_errors("bad_roster", mend=install):
            roster = load_roster(home / ROSTER_FILE)
    _identity(home, policy, roster, findings)
    signed = _signed(home)
    if roster is not None:
        _fingerprint(home, signed, spoken, findings)
    _certificates(home, policy, signed, findings, now)
    return roster


def _identity(home: Path, policy: Policy | None, roster: Roster | None, findings: Findings) -> None:
    path = home / IDENTITY_FILE
    if not path.is_file():
        mend = f"make one: fedblocks company request {shlex.quote(str(home))} --company NAME, or fedblocks identity"
        findings.error("no_identity", path, "no such file", mend)
        return
    with findings.as_errors("bad_identity", mend="restore it from a backup, or make new keys and a request"):
        identity = load_identity(path)
        if roster is None or policy is None:
            return
        public = roster.members.get(policy.company)
        if public is None:
            named = ", ".join(sorted(roster.members))
            mend = f"the names there are {named}: mend company in policy.toml, or ask for a newer roster"
            findings.error("not_in_roster", home / ROSTER_FILE, f"does not name {policy.company!r}", mend)
        elif public != identity.public:
            what = f"has another identity for {policy.company!r} than identity.key"
            mend = "install the newest roster, or restore the key that it has from a backup"
            findings.error("other_identity", home / ROSTER_FILE, what, mend)


def _signed(home: Path) -> SignedRoster | None:
    try:
        return load_signed_roster(home / ROSTER_FILE)
    except FedblocksError:  # told already
        return None


def _fingerprint(home: Path, signed: SignedRoster | None, spoken: str | None, findings: Findings) -> None:
    path = home / ROSTER_FILE
    if signed is None:
        if spoken is not None:
            what = "was written by hand, so no provisioner has signed it"
            mend = "compare each company's public key by other means, or install a signed roster"
            findings.error("unsigned_roster", path, what, mend)
        return
    found = fingerprints.of_provisioner(signed.signer)
    if spoken is None:
        findings.note("fingerprint", path, f"signed by the provisioner {found}; compare it by phone")
        return
    try:
        expected = fingerprints.given("--fingerprint", spoken)
    except InputError as error:
        findings.error("other_provisioner", path, str(error), "type it as it is read out")
        return
    if not fingerprints.same(found, expected):
        what = f"signed by {found}, not by the provisioner whose fingerprint was read out"
        mend = "do not use it: ask the provisioner for the kit again, over another channel"
        findings.error("other_provisioner", path, what, mend)


def _certificates(
    home: Path, policy: Policy | None, signed: SignedRoster | None, findings: Findings, now: datetime
) -> None:
    folder, quoted = home / FOLDER, shlex.quote(str(home))
    if not Endpoint.configured(home):
        mend = "install the provisioner's kit; without a data plane, run `fedblocks supernode`"
        findings.warn("no_data_plane", folder / "transport.toml", "no such file", mend)
        return
    install = f"install the newest kit or roster: fedblocks company install KIT {quoted}"
    for name in (KEY_FILE, CERTIFICATE_FILE, "coordinator.pem"):
        if not (folder / name).is_file():
            findings.error("no_certificate", folder / name, "no such file", install)
            return
    with findings.as_errors("bad_certificate", mend=install):
        for notice in of_company(home, now):
            tell = findings.warn if notice.valid else findings.error
            tell("expiring" if notice.valid else "expired", notice.path, notice.rule)
        own = certificate_of((folder / CERTIFICATE_FILE).read_bytes(), str(folder / CERTIFICATE_FILE))
        other = certificate_of((folder / "coordinator.pem").read_bytes(), str(folder / "coordinator.pem"))
        _belong_together(folder, own, findings, install)
        _made_out_to(folder, own, other, policy, findings, install)
        if signed is not None:
            _as_pinned(folder, own, other, policy, signed, findings, install)


def _belong_together(folder: Path, own: x509.Certificate, findings: Findings, mend: str) -> None:
    try:
        key = load_pem_private_key((folder / KEY_FILE).read_bytes(), None)
    except ValueError:
        findings.error("bad_certificate", folder / KEY_FILE, "not a private key in PEM", mend)
        return
    if key.public_key() != own.public_key():
        what = f"is not the key of {CERTIFICATE_FILE}"
        findings.error(
            "other_key", folder / KEY_FILE, what, f"put the pair there that was made together, or {mend}"
        )


def _made_out_to(
    folder: Path,
    own: x509.Certificate,
    other: x509.Certificate,
    policy: Policy | None,
    findings: Findings,
    mend: str,
) -> None:
    if policy is not None and name_in(own) != policy.company:
        what = f"made out to {name_in(own)!r}, policy.toml says {policy.company!r}"
        findings.error(
            "other_name", folder / CERTIFICATE_FILE, what, f"mend the name in policy.toml, or {mend}"
        )
    if name_in(other) != COORDINATOR:
        what = f"made out to {name_in(other)!r}, which is not a coordinator's certificate"
        findings.error("not_the_coordinator", folder / "coordinator.pem", what, mend)


def _as_pinned(
    folder: Path,
    own: x509.Certificate,
    other: x509.Certificate,
    policy: Policy | None,
    signed: SignedRoster,
    findings: Findings,
    mend: str,
) -> None:
    pinned = None if policy is None else signed.certificates.get(policy.company)
    if pinned is not None and fingerprint(pinned) != fingerprint(own):
        what = "is not the certificate of this company that the roster has: the coordinator will refuse it"
        findings.error("other_certificate", folder / CERTIFICATE_FILE, what, mend)
    if name_in(other) == COORDINATOR and fingerprint(signed.coordinator) != fingerprint(other):
        what = "is not the coordinator's certificate that the roster has"
        findings.error("other_certificate", folder / "coordinator.pem", what, mend)
