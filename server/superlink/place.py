"""Where the coordinator's SuperLink keeps its files and listens, and which companies' nodes it knows.

PLANE/
    own.key, own.pem    TLS of the SuperLink, too
    roster.toml         the address at which companies look for it
    flower/NAME.pub     each company's node key, from the kit
    superlink/          mode 700
        control.sock    Flower's control and runtime interfaces, for the coordinator's user alone
        state.sqlite    Flower's state: registered nodes, messages under way
        superlink.log   what Flower says; superlink.err, the last words of its process
        flwr/           FLWR_HOME
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from ...errors import InputError
from ...protocol.identity import ROSTER_FILE, load_signed_roster
from ...protocol.transport.address import split
from ..stream.settings import ServiceSettings
from . import FOLDER, LOG, SOCKET

# What keeps Flower from asking the network for anything.
OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class LinkPlace:
    """`host` and `port`: where it listens for companies."""

    plane: Path
    host: str
    port: int

    @classmethod
    def configured(cls, plane: Path) -> bool:
        """Whether the installed roster tells companies of a SuperLink."""
        path = plane / ROSTER_FILE
        signed = load_signed_roster(path) if path.is_file() else None
        return signed is not None and signed.content.coordinator.superlink is not None

    @classmethod
    def of(cls, plane: Path) -> LinkPlace:
        """Raises: InputError where the folder has no SuperLink, or a file of it cannot be used."""
        if not cls.configured(plane):
            rule = (
                "tells of no SuperLink; the provisioner sets superlink_port under [coordinator] in federation.toml, "
                f"and the new roster is installed: fedblocks coordinator install roster.toml {plane}"
            )
            raise InputError("roster", str(plane / ROSTER_FILE), rule)
        signed = load_signed_roster(plane / ROSTER_FILE)
        assert signed is not None
        assert signed.content.coordinator.superlink is not None
        settings = ServiceSettings.load(plane)
        port = split(signed.content.coordinator.superlink)[1]
        given = settings.superlink_listen or f"{settings.listen.rpartition(':')[0]}:{port}"
        return cls(plane.resolve(), *split(given))

    @property
    def folder(self) -> Path:
        return self.plane / FOLDER

    @property
    def log(self) -> Path:
        return self.folder / LOG

    @property
    def socket(self) -> Path:
        return self.folder / SOCKET

    @property
    def certificate(self) -> Path:
        return self.plane / "own.pem"

    @property
    def environment(self) -> dict[str, str]:
        """For Flower's process: it keeps to this folder and this installation, and asks nobody."""
        search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {**os.environ, **OFFLINE, "FLWR_HOME": str(self.folder / "flwr"), "PATH": search}

    def node_keys(self) -> dict[str, bytes]:
        """The public node key of each company of the roster, in PEM as Flower keeps it.

        Raises: InputError where a file is missing or holds no key.
        """
        signed = load_signed_roster(self.plane / ROSTER_FILE)
        found: dict[str, bytes] = {}
        for name, text in sorted(signed.content.node_keys.items()) if signed is not None else ():
            try:
                key = serialization.load_ssh_public_key(text.encode())
            except (ValueError, UnsupportedAlgorithm):
                raise InputError("roster", str(self.plane / ROSTER_FILE), f"no node key of {name}") from None
            form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            found[name] = key.public_bytes(*form)
        return found

    def roster_seen(self) -> float:
        """When the roster was last written, to notice a new one."""
        return (self.plane / ROSTER_FILE).stat().st_mtime
