"""The companies' certificates, as the coordinator has pinned them."""

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

    def __init__(self, certificates: Mapping[str, bytes]) -> None:
        self.pem = b"\n".join(certificates.values())
        self._fingerprints: dict[str, bytes] = {}
        for company, pem in certificates.items():
            certificate = certificate_of(pem, company)
            if name_in(certificate) != company:
                raise InputError("certificate", company, f"is made out to {name_in(certificate)!r}")
            self._fingerprints[company] = fingerprint(certificate)
        if not self._fingerprints:
            raise InputError("companies", [], "there is no certificate")

    @classmethod
    def load(cls, folder: Path) -> PinnedCertificates:
        """From files named COMPANY.pem."""
        return cls({path.stem: read(path) for path in sorted(folder.glob("*.pem"))})

    @property
    def companies(self) -> tuple[str, ...]:
        return tuple(self._fingerprints)

    def owner(self, pem: bytes) -> str | None:
        """The company whose pinned certificate this is; None if it is not pinned."""
        try:
            presented = fingerprint(x509.load_pem_x509_certificate(pem))
        except ValueError:
            return None
        found = None
        for company, pinned in self._fingerprints.items():
            if hmac.compare_digest(presented, pinned):
                found = company
        return found
