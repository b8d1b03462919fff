"""The coordinator's configuration of the data plane.

FOLDER/
    transport.toml      listen = "0.0.0.0:9443"
    own.key, own.pem    the coordinator's key and certificate; companies pin own.pem
    companies/NAME.pem  each company's certificate, received out of band
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ...protocol.expiry import of_coordinator, refuse_ended
from ...protocol.names import COORDINATOR
from ...protocol.transport.address import Address
from ...protocol.transport.certificates import OwnCertificate
from ...protocol.transport.pinned import PinnedCertificates
from ...settings import parsed_toml, read_text, validated
from .service import AggregationService

log = logging.getLogger("fedblocks.transport")


class ServiceSettings(BaseModel):
    """`transport.toml` of a coordinator."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    listen: Address
    largest_message_mb: int = Field(1024, ge=1, le=16384)
    gather: float = Field(60.0, gt=0, le=3600, description="seconds in which all companies must connect")

    @classmethod
    def load(cls, folder: Path) -> ServiceSettings:
        path = folder / "transport.toml"
        return validated(cls, parsed_toml("transport.toml", path, read_text("transport.toml", path)))

    def service(self, folder: Path, run: str) -> AggregationService:
        """The service of one run, not listening yet.

        Raises:
            InputError: the coordinator's own certificate, or its roster, has expired, or a file cannot be used.
        """
        notices = of_coordinator(folder)
        refuse_ended(notice for notice in notices if notice.owner in (None, COORDINATOR))
        for notice in notices:
            log.warning("%s", notice)
        return AggregationService(
            OwnCertificate.load(folder),
            PinnedCertificates.load(folder / "companies"),
            run,
            largest_message=self.largest_message_mb << 20,
        )
