"""`fedblocks provision`: a signed roster and a start-up kit for each party, from one file and all requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

people = Console(stderr=True)


def provision(
    federation: Annotated[Path, typer.Argument(help="federation.toml; the rest is made beside it")],
    trial: Annotated[
        bool, typer.Option("--trial", help="make everybody's private keys here, and put them into the kits")
    ] = False,
    rotate: Annotated[
        list[str] | None, typer.Option(help="in a trial: make this party's keys anew; repeatable")
    ] = None,
    renew: Annotated[bool, typer.Option("--renew", help="a new version though nothing has changed")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Make or renew the roster and the start-up kits of a federation."""
    from ..protocol import fingerprints
    from ..protocol.federation.provisioner import provision as make

    made = make(federation, trial=trial, rotate=rotate or [], renew=renew)
    roster, changes = made.roster, made.changes
    provisioner = fingerprints.of_provisioner(roster.signer)
    prints = {name: request.fingerprint for name, request in made.requests.items()}
    warnings = [str(notice) for notice in made.notices]
    if as_json:
        told = {
            "federation": roster.content.federation,
            "version": roster.version,
            "expires": roster.content.expires.isoformat(),
            "new_version": made.previous is None or made.previous.version != roster.version,
            **changes,
            "roster": str(made.path),
            "kits": {name: str(path) for name, path in made.kits.items()},
            "fingerprints": {"provisioner": provisioner, "roster": roster.fingerprint, "requests": prints},
            "confirmed": sorted(made.confirmed),
            "keys_made_here": sorted(made.made_here),
            "warnings": warnings,
        }
        print(json.dumps(told))
        return

    def say(text: str) -> None:
        people.print(text, markup=False, highlight=False, soft_wrap=True)

    say(
        f"{roster.content.federation}: version {roster.version} of the roster, "
        f"until {roster.content.expires:%Y-%m-%d}"
    )
    for what, names in changes.items():
        if names:
            say(f"  {what}: {', '.join(names)}")
    for name, path in made.kits.items():
        origin = "with its private keys, for a trial" if name in made.made_here else "no private key in it"
        say(f"  {path}: for {name}, {origin}")
    say(f"Who has a kit already needs the roster alone: {made.path}")
    say(f"Your fingerprint, to read out to everybody who installs for the first time: {provisioner}")
    say("Fingerprints of requests; call each party, and compare before you hand out kits:")
    for name, text in prints.items():
        note = "made here" if name in made.made_here else "confirmed in federation.toml"
        say(f"  {name}: {text}" + (f" ({note})" if name in made.made_here | made.confirmed else ""))
    for warning in warnings:
        say(f"warning: {warning}")
