"""The signed roster: who takes part in a federation, with which keys and certificates, and until when.

The provisioner signs it. It has a version, and whoever has installed one takes no older one. It holds public keys and
certificates alone, so it may be sent in the clear; a company needs nothing else when others join, leave or change
their keys. As a file it is signed text (`signed_text`) in TOML, and also the `roster.toml` that an agent reads:

    # fedblocks roster, signed with Ed25519: ...
    federation = "example"
    version = 3
    issued = 2026-01-31T12:00:00+00:00
    expires = 2027-01-31T12:00:00+00:00

    [companies]        # Ed25519 identities
    acme = "64 hexadecimal digits"

    [certificates]     # of the data plane, in PEM
    [node_keys]        # for Flower's node authentication, in OpenSSH's format
    [revoked]          # companies that left, and in which version
    [coordinator]      # address, identity, certificate; superlink, if Flower is used
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated, Any

import tomli_w
from cryptography import x509
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from ..errors import InputError, ProtocolError
from ..privacy.secure_aggregation import Identity, Roster
from ..privacy.secure_aggregation.wire import same
from ..settings import parsed_toml, validated
from . import fingerprints, signed_text
from .names import COORDINATOR, FEDERATION_NAME, check_company_name, check_distinct
from .transport.address import Address
from .transport.certificates import certificate_of, fingerprint, name_in
from .transport.pinned import PinnedCertificates

KIND = "roster"

# A machine's clock may be behind the provisioner's by this much.
CLOCKS_DIFFER = timedelta(days=1)

NodeKey = Annotated[str, Field(pattern=r"^ecdsa-sha2-nistp384 [A-Za-z0-9+/=]{1,300}$")]
HexKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CoordinatorEntry(_Strict):
    """The coordinator in a roster."""

    address: Address
    superlink: Address | None = None
    identity: HexKey
    certificate: str


class RosterContent(_Strict):
    """What the provisioner signs."""

    federation: str = Field(min_length=1, max_length=100, pattern=FEDERATION_NAME)
    version: int = Field(ge=1)
    issued: AwareDatetime
    expires: AwareDatetime
    companies: dict[str, HexKey] = Field(min_length=1)
    certificates: dict[str, str]
    node_keys: dict[str, NodeKey] = {}
    revoked: dict[str, int] = {}
    coordinator: CoordinatorEntry

    def as_toml(self) -> str:
        tables: dict[str, Any] = self.model_dump(exclude_none=True)
        return tomli_w.dumps(tables, multiline_strings=True)


@dataclass(frozen=True)
class SignedRoster:
    """A roster with a valid signature of `signer`."""

    content: RosterContent
    signer: bytes
    file: bytes = field(repr=False)

    @classmethod
    def sign(cls, content: RosterContent, provisioner: Identity) -> SignedRoster:
        signed = signed_text.sign(KIND, content.as_toml(), provisioner)
        return cls.parse(signed.content, KIND)

    @classmethod
    def parse(cls, file: bytes, where: str) -> SignedRoster:
        """Check signature and content; InputError names what is wrong."""
        signed = signed_text.opened(KIND, file, where)
        content = validated(RosterContent, parsed_toml(KIND, where, signed.text))
        found = cls(content, signed.signer, file)
        found._check(where)
        return found

    @property
    def version(self) -> int:
        return self.content.version

    @property
    def fingerprint(self) -> str:
        return fingerprints.fingerprint(KIND, self.file)

    @cached_property
    def roster(self) -> Roster:
        """Names and identities, as secure aggregation takes them."""
        return Roster({name: bytes.fromhex(key) for name, key in self.content.companies.items()})

    @cached_property
    def certificates(self) -> dict[str, x509.Certificate]:
        """By company."""
        return {name: certificate_of(pem.encode(), name) for name, pem in self.content.certificates.items()}

    @cached_property
    def coordinator(self) -> x509.Certificate:
        return certificate_of(self.content.coordinator.certificate.encode(), COORDINATOR)

    def other_keys(
        self, name: str, identity: bytes, certificate: x509.Certificate, node: str | None
    ) -> list[str]:
        """Which keys of a company (or of COORDINATOR) are others here than these; compared in constant time."""
        content, found = self.content, []
        is_coordinator = name == COORDINATOR
        key = content.coordinator.identity if is_coordinator else content.companies[name]
        pinned = self.coordinator if is_coordinator else self.certificates[name]
        if not same(bytes.fromhex(key), identity):
            found.append("identity")
        if not same(fingerprint(pinned), fingerprint(certificate)):
            found.append("certificate")
        if not is_coordinator and not same(content.node_keys.get(name, "").encode(), (node or "").encode()):
            found.append("node key")
        return found

    def _check(self, where: str) -> None:
        content = self.content
        if content.expires <= content.issued:
            raise InputError(KIND, where, "expires before it was issued")
        for name in (*content.companies, *content.revoked):
            check_company_name(KIND, name)
        check_distinct(KIND, (*content.companies, *content.revoked))
        if content.certificates.keys() != content.companies.keys():
            raise InputError(KIND, where, "has not one certificate for each company")
        if not content.node_keys.keys() <= content.companies.keys():
            raise InputError(KIND, where, "has a node key of nobody's")
        try:
            _ = self.roster
        except ProtocolError as error:
            raise InputError(KIND, where, str(error)) from None
        PinnedCertificates({name: pem.encode() for name, pem in content.certificates.items()})
        if name_in(self.coordinator) != COORDINATOR:
            raise InputError(
                KIND, where, f"the coordinator's certificate is made out to {name_in(self.coordinator)!r}"
            )


def difference(
    own: Mapping[str, bytes],
    other: Mapping[str, bytes],
    *,
    of_own: str = "this one",
    of_other: str = "the other",
) -> str:
    """In which companies two rosters differ, in words; empty if they do not."""
    more, fewer = sorted(other.keys() - own.keys()), sorted(own.keys() - other.keys())
    changed = sorted(name for name in own.keys() & other.keys() if not same(own[name], other[name]))
    said = []
    if more:
        said.append(f"{', '.join(more)} only in {of_other}")
    if fewer:
        said.append(f"{', '.join(fewer)} only in {of_own}")
    if changed:
        said.append(f"another key of {', '.join(changed)}")
    return "; ".join(said)


def check_time(content: RosterContent, now: datetime, where: str) -> None:
    """InputError for a roster that has expired, or that was issued more than a day ahead of this machine's clock."""
    if now >= content.expires:
        rule = f"version {content.version} expired on {content.expires:%Y-%m-%d}; ask the provisioner for a new one"
        raise InputError(KIND, where, rule)
    if now < content.issued - CLOCKS_DIFFER:
        rule = f"was issued on {content.issued:%Y-%m-%d}, this machine's clock says {now:%Y-%m-%d}: set the clock"
        raise InputError(KIND, where, rule)
