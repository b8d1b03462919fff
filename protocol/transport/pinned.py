"""The companies' certificates, as the coordinator has pinned them.

Read from a folder, they follow it: a company whose file is removed is refused from then on, and one whose file is
replaced needs its new certificate. Who can take part is decided when they are read, so new files are not looked at.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509

from ...errors import InputError
from .certificates import certificate_of, fingerprint, name_in, read


class PinnedCertificates:
    """The companies' certificates by name.

    TLS admits any peer with the key of one of them; `owner` then says which company it is.

    Raises:
        InputError: there is no certificate, or one is not made out to its company.
    """

    def __init__(self, certificates: Mapping[str, bytes], folder: Path | None = None) -> None:
        self._certificates = dict(certificates)
        self._folder = folder
        for company, pem in certificates.items():
            name = name_in(certificate_of(pem, company))
            if name != company:
                raise InputError("certificate", company, f"is made out to {name!r}")
        if not certificates:
            raise InputError("companies", [], "there is no certificate")

    @classmethod
    def load(cls, folder: Path) -> PinnedCertificates:
        """From files named COMPANY.pem."""
        return cls({path.stem: read(path) for path in sorted(folder.glob("*.pem"))}, folder)

    @property
    def companies(self) -> tuple[str, ...]:
        return tuple(self._certificates)

    @property
    def pem(self) -> bytes:
        """All certificates that are pinned now, one after another."""
        return b"\n".join(found for company in self.companies if (found := self._pinned(company)) is not None)

    def owner(self, pem: bytes) -> str | None:
        """The company whose pinned certificate this is; None if it is not pinned."""
        found = None
        for company in self.companies:
            if self.holds(company, pem):
                found = company
        return found

    def holds(self, company: str, pem: bytes) -> bool:
        """Whether this certificate is the one that is pinned for the company now."""
        pinned = self._pinned(company)
        try:
            presented = fingerprint(x509.load_pem_x509_certificate(pem))
            return pinned is not None and hmac.compare_digest(
                presented, fingerprint(certificate_of(pinned, company))
            )
        except ValueError:
            return False

    def _pinned(self, company: str) -> bytes | None:
        if self._folder is None:
            return self._certificates[company]
        try:
            pem = (self._folder / f"{company}.pem").read_bytes()
            return pem if name_in(certificate_of(pem, company)) == company else None
        except (OSError, InputError):  # removed, or not whole while it is copied there
            return None
