"""A request: the public halves of one party's keys, signed with its identity key, for the provisioner to take in.

Signed text (`signed_text`) in TOML. The certificate is signed with its own key, so a request also shows that its
sender has that key. Its fingerprint is read out over the phone: the provisioner then knows whose request it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import tomli_w
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict

from ...errors import InputError
from ...privacy.secure_aggregation.wire import same
from ...settings import parsed_toml, validated
from .. import fingerprints, signed_text
from ..names import COORDINATOR, check_company_name
from ..roster import HexKey
from ..transport.certificates import certificate_of, fingerprint, name_in
from .keys import Keys, Role, check_node_key

KIND = "request"
SUFFIX = ".request"

LONGEST_DAYS = 3650


class RequestContent(BaseModel):
    """What a party signs."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    role: Literal["company", "coordinator"]
    name: str
    identity: HexKey
    certificate: str
    node_key: str | None = None


@dataclass(frozen=True)
class Request:
    """A request with a valid signature of the identity in it."""

    content: RequestContent
    file: bytes

    @classmethod
    def of(cls, keys: Keys) -> Request:
        """For one party's keys; the same keys give the same bytes."""
        tables: dict[str, Any] = {
            "role": keys.role,
            "name": keys.name,
            "identity": keys.identity.public.hex(),
            "certificate": keys.own.certificate.decode("ascii"),
        }
        if keys.node_public is not None:
            tables["node_key"] = keys.node_public
        text = tomli_w.dumps(tables, multiline_strings=True)
        return cls.parse(signed_text.sign(KIND, text, keys.identity).content, keys.name)

    @classmethod
    def parse(cls, file: bytes, where: str) -> Request:
        """Check signature and content, validity in time apart; InputError names what is wrong."""
        signed = signed_text.opened(KIND, file, where)
        content = validated(RequestContent, parsed_toml(KIND, where, signed.text))
        if not same(signed.signer, bytes.fromhex(content.identity)):
            raise InputError(
                KIND, where, "is signed with another key than the identity in it; ask for it again"
            )
        if content.role == "company":
            check_company_name(KIND, content.name)
        elif content.name != COORDINATOR:
            raise InputError(KIND, where, f"a coordinator's is made out to {COORDINATOR}")
        if (content.node_key is not None) != (content.role == "company"):
            raise InputError(KIND, where, "a company's has a node key, a coordinator's has none")
        if content.node_key is not None:
            check_node_key(content.name, content.node_key)
        found = cls(content, file)
        found._check_certificate(where)
        return found

    @property
    def role(self) -> Role:
        return self.content.role

    @property
    def name(self) -> str:
        return self.content.name

    @property
    def certificate(self) -> x509.Certificate:
        return certificate_of(self.content.certificate.encode(), self.name)

    @property
    def fingerprint(self) -> str:
        """Of name and keys, however often the request is made."""
        content = self.content
        parts = (
            content.role,
            content.name,
            content.identity,
            fingerprint(self.certificate).hex(),
            content.node_key,
        )
        return fingerprints.fingerprint(KIND, "\0".join(map(str, parts)).encode())

    def check_time(self, where: str, now: datetime | None = None) -> None:
        """InputError for a certificate that has expired, is not valid yet, or is valid for longer than ten years."""
        now, certificate = now or datetime.now(UTC), self.certificate
        ends = certificate.not_valid_after_utc
        if now >= ends:
            rule = f"the certificate expired on {ends:%Y-%m-%d}; make the request again with --rotate"
            raise InputError(KIND, where, rule)
        if certificate.not_valid_before_utc > now + timedelta(days=1):
            begins = certificate.not_valid_before_utc
            rule = f"the certificate is valid from {begins:%Y-%m-%d}, this clock says {now:%Y-%m-%d}: set the clocks"
            raise InputError(KIND, where, rule)
        if ends > now + timedelta(days=LONGEST_DAYS + 1):
            raise InputError(KIND, where, f"the certificate is valid for more than {LONGEST_DAYS} days")

    def _check_certificate(self, where: str) -> None:
        certificate = self.certificate
        if name_in(certificate) != self.name:
            rule = f"its certificate is made out to {name_in(certificate)!r}, the request to {self.name!r}"
            raise InputError(KIND, where, rule)
        if certificate.public_bytes(serialization.Encoding.PEM).decode() != self.content.certificate:
            raise InputError(
                KIND, where, "has more in it than the certificate in PEM"
            )  # every coordinator loads it
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise InputError(KIND, where, "the certificate's key is not of P-256")
        try:
            certificate.verify_directly_issued_by(certificate)
        except (InvalidSignature, ValueError, TypeError):
            raise InputError(KIND, where, "the certificate is not signed with its own key") from None
