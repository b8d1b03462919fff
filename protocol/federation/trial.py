"""A trial: a federation of named companies in folders of one machine, by the same kits as between machines.

FOLDER/
    provisioner/       federation.toml, rosters, kits, everybody's private keys
    NAME/              a company's home, with its kit installed
    coordinator/       the coordinator's folder, with its kit installed

What a trial lacks is all that makes a federation safe: private keys that were made at home.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from ...errors import InputError
from .. import fingerprints, private_file
from .installing import install_company, install_coordinator
from .keys import make_folder
from .provisioner import Provisioned, provision
from .settings import FederationSettings

PROVISIONER, COORDINATOR = "provisioner", "coordinator"
# Other folders that a trial has beside those of its companies.
DATA, RUNS = "data", "runs"


@dataclass(frozen=True)
class Trial:
    """Where everything is."""

    federation: Path
    coordinator: Path
    homes: dict[str, Path]
    provisioned: Provisioned


def set_up(folder: Path, companies: Sequence[str], *, port: int, superlink_port: int | None = None) -> Trial:
    """Provision a trial on loopback and install its kits.

    Raises:
        InputError: there is a trial in the folder already, or the names or ports cannot be used; nothing was written.
    """
    federation = federation_file(folder)
    if federation.parent.exists():
        rule = f"holds a trial already; to change it, run: fedblocks provision {federation} --trial"
        raise InputError("folder", str(folder), rule)
    coordinator: dict[str, object] = {"address": f"127.0.0.1:{port}", "listen": f"127.0.0.1:{port}"}
    if superlink_port is not None:
        coordinator["superlink_port"] = superlink_port
    tables = {"name": "trial", "companies": list(companies), "coordinator": coordinator}
    FederationSettings.checked(tables)
    for name in companies:
        if name.lower() in (PROVISIONER, DATA, RUNS):
            raise InputError("companies", name, "is the name of another folder of a trial; choose another")
    make_folder(federation.parent)
    private_file.write(federation, tomli_w.dumps(tables).encode())
    return installed(folder)


def installed(folder: Path) -> Trial:
    """Provision the trial of the folder as its federation.toml says, and install whatever is new in its kits.

    An interrupted set-up is completed by it. Raises: as `provision` and `install_company`.
    """
    federation = federation_file(folder)
    made = provision(federation, trial=True)
    spoken = fingerprints.of_provisioner(made.roster.signer)
    homes = {name: folder / name for name in made.roster.content.companies}
    for name, home in homes.items():
        install_company(made.kits[name], home, fingerprint=spoken)
    install_coordinator(made.kits[COORDINATOR], folder / COORDINATOR, fingerprint=spoken)
    return Trial(federation, folder / COORDINATOR, homes, made)


def federation_file(folder: Path) -> Path:
    """Where a trial's federation.toml is."""
    return folder / PROVISIONER / "federation.toml"
