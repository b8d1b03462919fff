"""`fedblocks trial`: named companies and a coordinator in folders of one machine, set up from kits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

people = Console(stderr=True)


def trial(
    folder: Annotated[
        Path, typer.Argument(help="a new folder: a home for each company, and the coordinator's")
    ],
    companies: Annotated[list[str], typer.Argument(help="the companies' names")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="of the data plane, on loopback")] = 9443,
    superlink_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="of Flower's SuperLink, if it is to be used")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Set up companies and a coordinator on this machine, to try things out: all private keys are made here."""
    from ..protocol import fingerprints
    from ..protocol.federation.trial import set_up

    made = set_up(folder, companies, port=port, superlink_port=superlink_port)
    if as_json:
        told = {
            "federation": str(made.federation),
            "coordinator": str(made.coordinator),
            "companies": {name: str(home) for name, home in made.homes.items()},
            "fingerprint": fingerprints.of_provisioner(made.provisioned.roster.signer),
        }
        print(json.dumps(told))
        return

    def say(text: str) -> None:
        people.print(text, markup=False, highlight=False, soft_wrap=True)

    for name, home in made.homes.items():
        say(f"{home}: the home of {name}, which still needs its rules, its data and a ledger")
    say(f"{made.coordinator}: the coordinator's folder, which listens on 127.0.0.1:{port}")
    say(f"To add or revoke companies, change {made.federation} and provision it again, with --trial.")
