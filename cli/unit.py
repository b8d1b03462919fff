"""`fedblocks agent unit` and `fedblocks coordinator unit`: what starts them with the machine, or in a container."""

from __future__ import annotations

import json
import os
import pwd
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from ..errors import InputError
from .agent import agent
from .coordinator import coordinator
from .service_files import ServiceFile

people = Console(stderr=True)

Format = Annotated[
    Literal["systemd", "container"],
    typer.Option("--format", help="a systemd unit, or the file that a container image is built from"),
]
To = Annotated[Path | None, typer.Option(help="a new file; none means stdout")]
Executable = Annotated[
    Path | None, typer.Option(help="the fedblocks command that the unit starts; none means this one")
]
User = Annotated[str | None, typer.Option(help="whom it runs as; none means the folder's owner")]
Metrics = Annotated[str | None, typer.Option(help="HOST:PORT, passed on")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]


@agent.command("unit")
def agent_unit(
    home: Annotated[Path, typer.Argument(help="the company's home folder")],
    form: Format = "systemd",
    to: To = None,
    executable: Executable = None,
    user: User = None,
    metrics: Metrics = None,
    as_json: AsJson = False,
) -> None:
    """A systemd unit, or a container file, that keeps `agent up` running and lets it write to HOME alone."""
    from ..client.policy_file import POLICY_FILE
    from ..protocol.names import check_company_name
    from ..settings import parsed_toml, read_text

    home = _folder("HOME", home)
    policy = parsed_toml("policy", home / POLICY_FILE, read_text("policy", home / POLICY_FILE))
    company = str(policy.get("company"))
    check_company_name("company", company)
    name, uid, gid = _owner(home, user)
    service = ServiceFile(
        group="agent",
        name=f"fedblocks-agent-{company.lower()}",
        description=f"fedblocks agent of {company}",
        words=("agent", "up", home, *_metrics(metrics)),
        writable=(home,),
        places=("/srv/home",),
        user=name,
        uid=uid,
        gid=gid,
        extras="agent",
        devices=policy.get("device", "cpu") != "cpu",
    )
    _give(service, form, to, executable, as_json)


@coordinator.command("unit")
def coordinator_unit(
    folder: Annotated[Path, typer.Argument(help="the coordinator's data plane folder")],
    runs_dir: Annotated[Path, typer.Option("--runs-dir", help="where run folders live")] = Path("runs"),
    form: Format = "systemd",
    to: To = None,
    executable: Executable = None,
    user: User = None,
    metrics: Metrics = None,
    as_json: AsJson = False,
) -> None:
    """A systemd unit, or a container file, that keeps `coordinator up` running; it may write to its folders alone."""
    from ..protocol.transport.address import split
    from ..server.stream.settings import ServiceSettings

    folder, runs = _folder("FOLDER", folder), _folder("--runs-dir", runs_dir)
    name, uid, gid = _owner(folder, user)
    if runs.stat().st_uid != folder.stat().st_uid:
        raise InputError("--runs-dir", str(runs_dir), f"belongs to another user than {folder}; chown it")
    service = ServiceFile(
        group="coordinator",
        name="fedblocks-coordinator",
        description="fedblocks coordinator",
        words=("coordinator", "up", folder, "--runs-dir", runs, *_metrics(metrics)),
        writable=(folder, runs),
        places=("/srv/plane", "/srv/runs"),
        user=name,
        uid=uid,
        gid=gid,
        extras="agent",
        port=split(ServiceSettings.load(folder).listen)[1],
    )
    _give(service, form, to, executable, as_json)


def _folder(field: str, folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(field, str(folder), "no such folder")
    return folder.resolve()


def _owner(folder: Path, user: str | None) -> tuple[str, int, int]:
    """Name and numbers of whom a service for this folder runs as: its owner, since it refuses files of others."""
    found = folder.stat()
    try:
        owner = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        owner = str(found.st_uid)
    if user is not None and user not in (owner, str(found.st_uid)):
        raise InputError("--user", user, f"{folder} belongs to {owner}: chown -R it, or leave this out")
    if found.st_uid == 0:
        text = (
            f"{folder} belongs to root; better to a user of its own: useradd --system fedblocks, and chown -R"
        )
        people.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return owner, found.st_uid, found.st_gid


def _metrics(address: str | None) -> tuple[str, ...]:
    return () if address is None else ("--metrics", address)


def _give(service: ServiceFile, form: str, to: Path | None, executable: Path | None, as_json: bool) -> None:
    from .. import atomic_file

    command = executable or Path(sys.executable).with_name("fedblocks")
    if form == "systemd" and not (command.is_file() and os.access(command, os.X_OK)):
        raise InputError("--executable", str(command), "no such program; name the fedblocks command to start")
    text = service.systemd(command.absolute()) if form == "systemd" else service.container()
    told: dict[str, Any] = {"name": service.name, "format": form, "user": service.user}
    if to is not None:
        try:
            with atomic_file.creating(to) as draft:
                draft.write_text(text)
        except FileExistsError:
            raise InputError("--to", str(to), "exists already; give a new file") from None
    if as_json:
        print(json.dumps(told | ({"text": text} if to is None else {"to": str(to)})))
    elif to is None:
        print(text, end="")
    else:
        people.print(f"Wrote {to}; its first lines say how to use it", markup=False, soft_wrap=True)
