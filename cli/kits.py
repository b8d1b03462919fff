"""`request` and `install` of a company and of the coordinator: keys made at home, and the kits that come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..errors import InputError
from .company import company
from .coordinator import coordinator

if TYPE_CHECKING:
    from ..protocol.federation.installing import Installed
    from ..protocol.federation.keys import Role

people = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]
Days = Annotated[int, typer.Option(min=1, max=3650, help="validity of the certificate")]
ReplaceKeys = Annotated[
    bool,
    typer.Option(
        "--replace-keys", help="in a trial: private keys of the kit may replace those that are there"
    ),
]
Rotate = Annotated[
    bool,
    typer.Option("--rotate", help="make new keys; the old ones stay in use until a roster has the new ones"),
]
KitFile = Annotated[Path, typer.Argument(help="the kit (a zip), or a newer roster.toml alone")]
Fingerprint = Annotated[
    str | None,
    typer.Option(help="the provisioner's, as read out over the phone; needed for the first install"),
]
Home = Annotated[Path, typer.Argument(help="the company's home folder")]
Folder = Annotated[Path, typer.Argument(help="the coordinator's own folder")]


@company.command("request")
def company_request(
    home: Home,
    name: Annotated[
        str | None, typer.Option("--company", help="the company's name; needed the first time")
    ] = None,
    days: Days = 730,
    rotate: Rotate = False,
    as_json: AsJson = False,
) -> None:
    """Make the company's keys if it has none, and the request for the provisioner. No private key leaves."""
    from ..protocol.federation.keys import name_of_home
    from ..protocol.names import check_company_name

    known = name_of_home(home)
    if name is None and known is None:
        raise InputError("--company", None, "give the company's name, as it is to stand in the roster")
    if name is not None:
        check_company_name("--company", name)
        if known not in (None, name):
            raise InputError("--company", name, f"{home} is the home of {known!r}")
    _request("company", home, known or name or "", days, [], rotate, as_json)


@coordinator.command("request")
def coordinator_request(
    folder: Folder,
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", help="a name or IP address of this machine, for a SuperLink; repeatable"),
    ] = None,
    days: Days = 730,
    rotate: Rotate = False,
    as_json: AsJson = False,
) -> None:
    """Make the coordinator's keys if it has none, and the request for the provisioner. No private key leaves."""
    from ..protocol.names import COORDINATOR

    _request("coordinator", folder, COORDINATOR, days, hosts or [], rotate, as_json)


@company.command("install")
def company_install(
    kit: KitFile,
    home: Home,
    fingerprint: Fingerprint = None,
    replace_keys: ReplaceKeys = False,
    as_json: AsJson = False,
) -> None:
    """Check a start-up kit or a newer roster, and put it in place in the company's home."""
    from ..protocol.federation.installing import install_company

    done = install_company(kit, home, fingerprint=fingerprint, replace_keys=replace_keys)
    _say(done, home, as_json)


@coordinator.command("install")
def coordinator_install(
    kit: KitFile,
    folder: Folder,
    fingerprint: Fingerprint = None,
    replace_keys: ReplaceKeys = False,
    as_json: AsJson = False,
) -> None:
    """Check a start-up kit or a newer roster, and put it in place in the coordinator's folder."""
    from ..protocol.federation.installing import install_coordinator

    done = install_coordinator(kit, folder, fingerprint=fingerprint, replace_keys=replace_keys)
    _say(done, folder, as_json)


def _request(
    role: Role, folder: Path, name: str, days: int, hosts: list[str], rotate: bool, as_json: bool
) -> None:
    from ..protocol import private_file
    from ..protocol.federation.keys import own_keys
    from ..protocol.federation.request import SUFFIX, Request

    request = Request.of(own_keys(role, folder, name, days=days, hosts=hosts, rotate=rotate))
    path = folder / f"{name if role == 'company' else role}{SUFFIX}"
    request.check_time(str(path))
    private_file.write(path, request.file)
    if as_json:
        told = {"request": str(path), "name": request.name, "fingerprint": request.fingerprint}
        print(json.dumps(told))
        return
    people.print(
        f"Send {path} to the provisioner; private keys stay in {folder}.", markup=False, soft_wrap=True
    )
    people.print("When the provisioner calls, read out this fingerprint:")
    print(request.fingerprint)


def _say(done: Installed, folder: Path, as_json: bool) -> None:
    from ..protocol.log_text import printable

    content = done.roster.content
    for notice in done.notices:
        people.print(f"warning: {notice}", markup=False, soft_wrap=True)
    if as_json:
        told = {
            "folder": str(folder),
            "name": done.name,
            "federation": content.federation,
            "version": content.version,
            "expires": content.expires.isoformat(),
            "companies": list(content.companies),
            "roster_fingerprint": done.roster.fingerprint,
            "keys": done.keys,
            "written": list(done.written),
            "changes": done.changes,
            "warnings": [str(notice) for notice in done.notices],
        }
        print(json.dumps(told))
        return
    if not done.written:
        people.print(f"Version {content.version} was installed already.")
    people.print(
        f"{done.name} is in {content.federation} with {', '.join(content.companies)}: version {content.version} of "
        f"the roster, until {content.expires:%Y-%m-%d}, fingerprint {done.roster.fingerprint}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    if done.changes:
        people.print(f"Changed: {printable(done.changes)}", markup=False, soft_wrap=True)
