"""Wrong, expired and exchanged certificates, rosters that differ: real processes, clean refusals, nothing charged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.federation import COMPANIES, Federation
from support.kit_processes import command, ended, prepared

from fedblocks.client.company import Company
from fedblocks.experiments.bench.transport_flower import free_port
from fedblocks.privacy.secure_aggregation import Identity
from fedblocks.protocol import private_file
from fedblocks.protocol.identity import load_roster, save_roster
from fedblocks.protocol.transport import OwnCertificate
from fedblocks.protocol.transport.certificates import COORDINATOR
from fedblocks.settings import SimulationSettings


@dataclass(frozen=True)
class Fault:
    """What is done to the files, and what acme's agent and the coordinator say of it; none: nothing special."""

    does: Callable[[Federation], None]
    agent: str | None
    coordinator: str


def exchange(folder: Path, own: OwnCertificate) -> None:
    private_file.write(folder / "own.key", own.key)
    private_file.write(folder / "own.pem", own.certificate)


def expired(federation: Federation) -> None:
    """Pinned at the coordinator as well."""
    own = OwnCertificate.create("acme", days=0)
    exchange(federation.home("acme") / "transport", own)
    private_file.write(federation.plane / "companies/acme.pem", own.certificate)


def unknown(federation: Federation) -> None:
    exchange(federation.home("acme") / "transport", OwnCertificate.create("acme"))


def other_coordinator(federation: Federation) -> None:
    pinned = federation.home("acme") / "transport/coordinator.pem"
    private_file.write(pinned, OwnCertificate.create(COORDINATOR).certificate)


def swapped(federation: Federation) -> None:
    """Of acme and bravo."""
    acme, bravo = (OwnCertificate.load(federation.home(name) / "transport") for name in ("acme", "bravo"))
    exchange(federation.home("acme") / "transport", bravo)
    exchange(federation.home("bravo") / "transport", acme)


def other_roster(federation: Federation) -> None:
    """acme has another key of charlie's."""
    roster = federation.home("acme") / "roster.toml"
    members = dict(load_roster(roster).members) | {"charlie": Identity.generate().public}
    save_roster(roster, members)


FAULTS = {
    "expired": Fault(expired, "the certificate of acme expired on", "acme missing after"),
    "unknown": Fault(
        unknown, "ends the connection once it has this company's certificate", "acme missing after"
    ),
    "another coordinator's": Fault(
        other_coordinator, "shows another certificate than the pinned one", "acme missing after"
    ),
    "swapped": Fault(swapped, None, "says it is"),
    "rosters differ": Fault(
        other_roster, None, "that of acme and that of the coordinator differ: another key of charlie"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_certificate_or_roster_is_named_and_nothing_is_charged(
    small: SimulationSettings, tmp_path: Path, name: str
) -> None:
    """Would catch "unreachable" without a reason, blame for another company, exit 0, and a charged ledger."""
    fault, port = FAULTS[name], free_port()
    federation = Federation.at(tmp_path, port=port)
    run = prepared(small, tmp_path / "run", federation)
    federation.provision(trial=True)
    federation.all_installed()
    shutil.copy(federation.plane / "roster.toml", run.path)
    fault.does(federation)
    private_file.write(
        federation.plane / "transport.toml", f'listen = "127.0.0.1:{port}"\ngather = 40\n'.encode()
    )
    for company in COMPANIES:
        settings = f'address = "127.0.0.1:{port}"\npatience = 60\n'
        private_file.write(federation.home(company) / "transport/transport.toml", settings.encode())
    serve = command("transport", "serve", run.path, federation.plane, "--json")
    agents = {n: command("transport", "agent", federation.home(n), "--json") for n in COMPANIES}
    try:
        out, said = serve.communicate(timeout=150)
        assert serve.returncode in (2, 3), said
        assert fault.coordinator in json.loads(out.splitlines()[-1])["message"]
        for process in agents.values():
            process.terminate()
        _, shown = agents["acme"].communicate(timeout=60)
        log = federation.home("acme") / "company.log"
        shown += log.read_text() if log.is_file() else ""
        if fault.agent is not None:
            assert fault.agent in shown
    finally:
        ended(serve, *agents.values())
    for company in COMPANIES:
        with Company.deployed(federation.home(company)).ledger() as ledger:
            assert ledger.rows() == []
