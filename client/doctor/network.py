"""Whether the coordinator's address can be reached, shows the pinned certificate and takes this company's."""

from __future__ import annotations

from pathlib import Path

from ...errors import FedblocksError
from ...protocol.transport.certificates import read
from ...protocol.transport.handshake import fault
from ...settings import parsed_toml, read_text, validated
from ..endpoint import FOLDER, EndpointSettings
from .findings import Findings


def check_network(home: Path, findings: Findings) -> None:
    folder = home / FOLDER
    path = folder / "transport.toml"
    try:
        settings = validated(
            EndpointSettings, parsed_toml("transport.toml", path, read_text("transport.toml", path))
        )
        pinned = read(folder / "coordinator.pem")
        found = fault(settings.address, pinned, folder)
    except FedblocksError as error:
        mend = 'expected address = "host:port", as the provisioner\'s kit writes it'
        findings.error("bad_address", path, str(error), mend)
        return
    if found is None:
        findings.note("reached", path, f"{settings.address} answers with the pinned certificate")
    else:
        findings.error("unreachable", path, found)
