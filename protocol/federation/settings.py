"""federation.toml: what the provisioner is told, by people.

    name = "example"
    companies = ["acme", "bravo", "charlie"]
    valid_days = 365                          # of the roster; in a trial of the certificates, too

    [coordinator]
    address = "coordinator.example.org:9443"  # where companies find the data plane
    superlink_port = 8000                     # where Flower is used

    [fingerprints]                            # of requests, as read out over the phone
    acme = "3f2a 91bc 07d4 e6a0 1c55 98fe 4b03 d27a"

A company that is taken out of `companies` is revoked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ...errors import InputError
from ...privacy.secure_aggregation.wire import MAX_COHORT
from ...settings import parsed_toml, read_text, validated
from .. import fingerprints
from ..names import FEDERATION_NAME, check_company_name, check_distinct
from ..transport.address import Address, split
from .request import LONGEST_DAYS


class CoordinatorSettings(BaseModel):
    """Where the coordinator is."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    address: Address
    listen: Address | None = Field(
        None, description="every interface, at the address's port, if it is not set"
    )
    superlink_port: int | None = Field(None, ge=1, le=65535, description="of Flower, if it is used")

    @property
    def host(self) -> str:
        return split(self.address)[0]

    @property
    def listens_at(self) -> str:
        return self.listen or f"0.0.0.0:{split(self.address)[1]}"

    @property
    def superlink(self) -> str | None:
        host = self.address.rpartition(":")[0]
        return None if self.superlink_port is None else f"{host}:{self.superlink_port}"


class FederationSettings(BaseModel):
    """`federation.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(min_length=1, max_length=100, pattern=FEDERATION_NAME)
    companies: list[str] = Field(min_length=1, max_length=MAX_COHORT)
    valid_days: int = Field(365, ge=1, le=LONGEST_DAYS)
    coordinator: CoordinatorSettings
    fingerprints: dict[str, str] = {}

    @classmethod
    def load(cls, path: Path) -> FederationSettings:
        """InputError names the first thing in the file that cannot be used."""
        return cls.checked(parsed_toml("federation", path, read_text("federation", path)))

    @classmethod
    def checked(cls, tables: Mapping[str, object]) -> FederationSettings:
        """From the tables of such a file; raises as `load`."""
        found = validated(cls, dict(tables))
        for name in found.companies:
            check_company_name("companies", name)
        check_distinct("companies", found.companies)
        if split(found.coordinator.address)[1] == 0:
            raise InputError(
                "coordinator.address", found.coordinator.address, "companies need a port other than 0"
            )
        for name, text in found.fingerprints.items():
            if name not in (*found.companies, "coordinator"):
                raise InputError(
                    f"fingerprints.{name}", text, "of nobody in companies, nor of the coordinator"
                )
            fingerprints.given(f"fingerprints.{name}", text)
        return found

    def confirmed(self, name: str) -> str | None:
        """The fingerprint that a request of this company, or of "coordinator", must have; None if any will do."""
        text = self.fingerprints.get(name)
        return None if text is None else fingerprints.given(f"fingerprints.{name}", text)
