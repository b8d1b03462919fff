"""`fedblocks trial`: named companies and a coordinator as real processes on one machine, set up from kits."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..errors import InputError
from .options import PORT

people = Console(stderr=True)


def trial(
    folder: Annotated[
        Path, typer.Argument(help="a folder of its own: a home for each company, and the coordinator's")
    ],
    companies: Annotated[
        list[str] | None, typer.Argument(help="the companies' names; none goes on with a trial that is there")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="a preset's name or a TOML file: import its data, and run it; none only sets files up",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value over the preset; repeatable")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="approve the run for every company, as `agent approve` does")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help=f"of the data plane, on loopback; none means {PORT}"),
    ] = None,
    superlink_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="of Flower's SuperLink, if it is to be used")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Companies and a coordinator on this machine, each a process of its own, to try things out.

    All private keys are made here, so it is no set-up for real data. After Ctrl-C the same command goes on.
    """
    if preset is None and not overrides and companies and not (folder / "trial.toml").exists():
        _files_alone(folder, companies, port or PORT, superlink_port, as_json)
        return
    if superlink_port is not None:
        raise InputError("--superlink-port", superlink_port, "of files alone: leave --preset out")
    from .trial_run import run

    run(folder, companies or [], preset, overrides or [], approves=yes, port=port, as_json=as_json)


def _files_alone(
    folder: Path, companies: list[str], port: int, superlink_port: int | None, as_json: bool
) -> None:
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
    say(f"Next: fedblocks trial {shlex.quote(str(folder))} --preset digits")
