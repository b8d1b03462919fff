"""`fedblocks agent`: the company's agent, and the record of what it decided."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

agent = typer.Typer(no_args_is_help=True, help="A company's agent: what it answers, and what it decided.")
people = Console(stderr=True)

_OWN = ("line", "time", "what", "run", "before", "hash")


@agent.callback()
def group() -> None:
    """A company's agent: what it answers, and what it decided."""


@agent.command("log")
def log(
    home: Annotated[Path, typer.Argument(help="the company's home folder")],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="against itself and the ledger; exit code 3 if it is wrong"),
    ] = False,
    run: Annotated[str | None, typer.Option(help="only lines about this run")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Every decision of a company's agent: asked, allowed, refused and why, charged, trained, sent."""
    from ..client.decisions import DECISIONS_FILE, check_chain, whole_lines
    from ..client.decisions import verify as verified
    from ..errors import InputError, LedgerError

    path = home / DECISIONS_FILE
    if not path.exists() and not verify:
        raise InputError(
            "HOME", str(home), f"has no {DECISIONS_FILE} yet: `fedblocks ledger create` begins it"
        )
    if verify:
        try:
            found = verified(home)
        except LedgerError as error:
            if as_json:
                print(json.dumps({"ok": False, "path": str(path), "says": str(error)}))
            people.print(f"[red]wrong:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
            raise typer.Exit(3) from None
        says = f"{found.lines} lines, of {found.rows} rows of the ledger"
        if found.unlogged:
            says += f"; {found.unlogged} of them charged and not on record yet, as after a crash"
        if as_json:
            print(json.dumps({"ok": True, "path": str(path), "says": says} | vars(found)))
        people.print(f"[green]verified:[/] {escape(str(path))}: {says}", soft_wrap=True, highlight=False)
        return
    entries = check_chain(path, whole_lines(path))
    chosen = [entry for entry in entries if run is None or entry.get("run") == run]
    if as_json:
        print(json.dumps({"path": str(path), "entries": chosen}))
        return
    table = Table()
    for column in ("line", "time (UTC)", "what", "run", "more"):
        table.add_column(column)
    for entry in chosen:
        time = datetime.datetime.fromtimestamp(entry["time"], datetime.UTC)
        more = ", ".join(f"{name} {value}" for name, value in entry.items() if name not in _OWN)
        cells = (str(entry["line"]), f"{time:%Y-%m-%d %H:%M:%S}", entry["what"], entry.get("run", ""), more)
        table.add_row(*map(escape, cells))
    people.print(table)
