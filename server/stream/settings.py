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

from ...errors import InputError
from ...privacy.secure_aggregation import Roster
from ...protocol import private_folder
from ...protocol.expiry import of_coordinator, refuse_ended
from ...protocol.identity import ROSTER_FILE, load_roster
from ...protocol.names import COORDINATOR
from ...protocol.roster import difference
from ...protocol.transport.address import Address
from ...protocol.transport.certificates import OwnCertificate
from ...protocol.transport.pinned import PinnedCertificates
from ...settings import parsed_toml, read_text, validated
from ...settings.commented import commented
from .service import AggregationService

log = logging.getLogger("fedblocks.transport")

SETTINGS_FILE = "transport.toml"
_TOP = """\
# The coordinator's own settings, read when it starts.
# Lines that begin with "# name =" are settings that are not set; remove the "# " to set one.
"""


class ServiceSettings(BaseModel):
    """`transport.toml` of a coordinator."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    listen: Address = Field(description="address and port at which companies reach the data plane")
    superlink_listen: Address | None = Field(
        None, description="of Flower's SuperLink; none: the host of `listen`, the port that the roster names"
    )
    largest_message_mb: int = Field(
        1024, ge=1, le=16384, description="a company's larger messages are refused"
    )
    gather: float | None = Field(
        None,
        gt=0,
        le=86400,
        description="seconds to wait for companies: none, as long as it takes; a run that Flower has started goes on "
        "without the data plane after 60",
    )

    @classmethod
    def load(cls, folder: Path) -> ServiceSettings:
        path = folder / SETTINGS_FILE
        return validated(cls, parsed_toml(SETTINGS_FILE, path, read_text(SETTINGS_FILE, path)))

    @classmethod
    def first(cls, folder: Path, listen: str) -> Path:
        """Make `folder` with a first file of settings, which says what there is to set; returns the file's path.

        Raises: InputError as `private_folder.begin`, and for an address that is none.
        """
        settings = validated(cls, {"listen": listen})
        text = commented(settings, examples={"superlink_listen": "0.0.0.0:8000", "gather": 600.0})
        return private_folder.begin("FOLDER", folder, SETTINGS_FILE, _TOP + text)

    @staticmethod
    def check_roster(folder: Path, roster: Roster) -> None:
        """InputError where a run was prepared with other companies than the roster installed in `folder` has."""
        installed = folder / ROSTER_FILE
        if not installed.is_file():
            return
        newest = load_roster(installed)
        text = difference(
            newest.members, roster.members, of_own="the installed one", of_other="that of the run"
        )
        if text:
            rule = f"the run was prepared with another roster ({text}): prepare it with this one, or copy it there"
            raise InputError("roster", str(installed), rule)

    def service(self, folder: Path, run: str) -> AggregationService:
        """The service of one run, not listening yet.

        Raises:
            InputError: the coordinator's own certificate, or its roster, has expired, or a file cannot be used.
        """
        look_at_ends(folder)
        return AggregationService(
            OwnCertificate.load(folder),
            PinnedCertificates.load(folder / "companies"),
            run,
            largest_message=self.largest_message_mb << 20,
        )


def look_at_ends(folder: Path) -> None:
    """Warn of what ends soon. Raises: InputError where the coordinator's certificate or its roster has expired."""
    notices = of_coordinator(folder)
    refuse_ended(notice for notice in notices if notice.owner in (None, COORDINATOR))
    for notice in notices:
        log.warning("%s", notice)
