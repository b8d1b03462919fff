"""What ends soon or has ended: certificates and rosters of a company's home and of a coordinator's folder.

Both sides look at their start and while they run; `fedblocks company check` and `coordinator status` show the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from ..errors import InputError
from .identity import ROSTER_FILE, load_signed_roster
from .names import COORDINATOR
from .roster import CLOCKS_DIFFER
from .transport.certificates import CERTIFICATE_FILE, certificate_of, name_in, read

WARN_DAYS = 30

_ASK = "ask the provisioner for a new roster, and install it: fedblocks {side} install roster.toml {folder}"
_RENEW = (
    "make a new one with `fedblocks {side} request {folder} --rotate` and send the request to the provisioner; "
    "without one, with `fedblocks transport certificate`, and hand it to the other side"
)


@dataclass(frozen=True)
class Notice:
    """A certificate or roster that ends within WARN_DAYS, has ended, or is not valid yet."""

    what: str  # "the certificate of acme", "version 3 of the roster"
    owner: str | None  # whose certificate; None for a roster
    path: str
    begins: datetime
    ends: datetime
    now: datetime
    mend: str

    @property
    def valid(self) -> bool:
        return self.begins <= self.now < self.ends

    @property
    def rule(self) -> str:
        """What is wrong, since when, and how to mend it."""
        if self.now < self.begins:
            day = f"{self.begins:%Y-%m-%d %H:%M} UTC"
            return f"{self.what} is not valid before {day}, this clock says {self.now:%Y-%m-%d %H:%M}: set the clocks"
        days = (self.ends - self.now).days
        when = f"expired on {self.ends:%Y-%m-%d}" if self.now >= self.ends else f"expires in {days} days"
        return f"{self.what} {when}; {self.mend}"

    def __str__(self) -> str:
        return f"{self.path}: {self.rule}"


def of_company(home: Path, now: datetime | None = None) -> list[Notice]:
    """Of a company's own certificate, the coordinator's, and the roster; files that are missing have none."""
    now = now or datetime.now(UTC)
    transport, ask = home / "transport", _ASK.format(side="company", folder=home)
    found = []
    if (own := transport / CERTIFICATE_FILE).is_file():
        found.append(_certificate(own, _RENEW.format(side="company", folder=home), now))
    if (pinned := transport / "coordinator.pem").is_file():
        mend = f"the coordinator makes a new one; then {ask}"
        found.append(_certificate(pinned, mend, now))
    return [notice for notice in (*found, _roster(home, ask, now)) if notice is not None]


def of_coordinator(folder: Path, now: datetime | None = None) -> list[Notice]:
    """Of the coordinator's own certificate, each company's, and the roster."""
    now = now or datetime.now(UTC)
    found = []
    if (own := folder / CERTIFICATE_FILE).is_file():
        renew = _RENEW.format(side="coordinator", folder=folder)
        found.append(_certificate(own, renew, now))
    for path in sorted((folder / "companies").glob("*.pem")):
        mend = f"{path.stem} cannot connect with it; it makes a new one, then " + _ASK.format(
            side="coordinator", folder=folder
        )
        found.append(_certificate(path, mend, now))
    roster = _roster(folder, _ASK.format(side="coordinator", folder=folder), now)
    return [notice for notice in (*found, roster) if notice is not None]


def refuse_ended(notices: Iterable[Notice]) -> None:
    """InputError for the first that is not valid now."""
    for notice in notices:
        if not notice.valid:
            raise InputError(
                "certificate" if notice.path.endswith(".pem") else "roster", notice.path, notice.rule
            )


def of_certificate(
    certificate: x509.Certificate, owner: str, path: str, mend: str, now: datetime
) -> Notice | None:
    """None for a certificate that is valid, and for longer than WARN_DAYS."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    said = "the coordinator" if owner == COORDINATOR else owner
    return _notice(Notice(f"the certificate of {said}", owner, path, begins, ends, now, mend))


def _certificate(path: Path, mend: str, now: datetime) -> Notice | None:
    certificate = certificate_of(read(path), str(path))
    return of_certificate(certificate, name_in(certificate), str(path), mend, now)


def _roster(folder: Path, mend: str, now: datetime) -> Notice | None:
    path = folder / ROSTER_FILE
    signed = load_signed_roster(path) if path.is_file() else None
    if signed is None:
        return None
    content = signed.content
    begins = content.issued - CLOCKS_DIFFER
    what = f"version {content.version} of the roster"
    return _notice(Notice(what, None, str(path), begins, content.expires, now, mend))


def _notice(notice: Notice) -> Notice | None:
    return notice if not notice.valid or (notice.ends - notice.now).days < WARN_DAYS else None
