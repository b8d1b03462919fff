"""The coordinator's configuration of the data plane.

FOLDER/
    transport.toml      listen = "0.0.0.0:9443"
    own.key, own.pem    the coordinator's key and certificate; companies pin own.pem
    companies/NAME.pem  each company's certificate, received out of band
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ...protocol.transport.certificates import OwnCertificate
from ...protocol.transport.pinned import PinnedCertificates
from ...settings import parsed_toml, read_text, validated
from .service import AggregationService


class ServiceSettings(BaseModel):
    """`transport.toml` of a coordinator."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    listen: str = Field(pattern=r"^[^\s/]+:[0-9]{1,5}$")
    largest_message_mb: int = Field(1024, ge=1, le=16384)
    gather: float | None = Field(
        None,
        gt=0,
        le=86400,
        description="seconds to wait for companies: none, as long as it takes; a run that Flower has started goes on "
        "without the data plane after 60",
    )

    @classmethod
    def load(cls, folder: Path) -> ServiceSettings:
        path = folder / "transport.toml"
        return validated(cls, parsed_toml("transport.toml", path, read_text("transport.toml", path)))

    def service(self, folder: Path, run: str) -> AggregationService:
        """The service of one run, not listening yet."""
        return AggregationService(
            OwnCertificate.load(folder),
            PinnedCertificates.load(folder / "companies"),
            run,
            largest_message=self.largest_message_mb << 20,
        )
