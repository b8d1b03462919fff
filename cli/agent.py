"""`fedblocks agent`: the company's agent, and the record of what it decided."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ..protocol.log_text import printable

agent = typer.Typer(no_args_is_help=True, help="A company's agent: what it answers, and what it decided.")
people = Console(stderr=True)

_DIGEST = re.compile(r"[0-9a-f]{64}")
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
    seen: Annotated[
        list[str] | None,
        typer.Option(
            help="with --verify: a last line's hash that was noted elsewhere, as in a signed statement"
        ),
    ] = None,
    run: Annotated[str | None, typer.Option(help="only lines about this run")] = None,
    last: Annotated[int | None, typer.Option(min=1, help="only so many of the newest lines")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Every decision of a company's agent: asked, allowed, refused and why, charged, trained, sent."""
    from ..client.decision_chain import check_chain, whole_lines
    from ..client.decisions import DECISIONS_FILE
    from ..client.decisions import verify as verified
    from ..errors import InputError, LedgerError

    path = home / DECISIONS_FILE
    if seen and not verify:
        raise InputError("--seen", seen[0], "is compared by --verify")
    if not path.exists() and not verify:
        raise InputError(
            "HOME", str(home), f"has no {DECISIONS_FILE} yet: `fedblocks ledger create` begins it"
        )
    if verify:
        try:
            found = verified(home, seen or ())
        except LedgerError as error:
            if as_json:
                print(json.dumps({"ok": False, "path": str(path), "says": str(error)}))
            people.print(f"[red]wrong:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
            raise typer.Exit(3) from None
        says = f"{found.lines} lines, of {found.rows} rows of the ledger, the last hash {found.head}"
        if found.unlogged:
            says += f"; {found.unlogged} of them charged and not on record yet, as after a crash"
        if found.beyond:
            says += f"; the last {found.beyond} not recorded as seen, as after a crash: they may be another's"
        if as_json:
            print(json.dumps({"ok": True, "path": str(path), "says": says} | vars(found)))
        people.print(f"[green]verified:[/] {escape(str(path))}: {says}", soft_wrap=True, highlight=False)
        return
    entries = check_chain(path, whole_lines(path))
    chosen = [entry for entry in entries if run is None or entry.get("run") == run]
    chosen = chosen if last is None else chosen[-last:]
    if as_json:
        print(json.dumps({"path": str(path), "entries": chosen}))
        return
    for entry in chosen:
        people.print(_in_a_line(entry), markup=False, highlight=False, soft_wrap=True)


def _in_a_line(entry: dict[str, Any]) -> str:
    """Number, time in UTC, what, and the rest by name; of a digest its first digits."""
    time = datetime.datetime.fromtimestamp(entry["time"], datetime.UTC)
    told = (f"{name} {_short(value)}" for name, value in entry.items() if name not in _OWN and value != "")
    run = f" {entry['run']}:" if entry.get("run") else ""
    return printable(f"{entry['line']} {time:%Y-%m-%d %H:%M:%S} {entry['what']}{run} {', '.join(told)}")


def _short(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value[:12]}..." if isinstance(value, str) and _DIGEST.fullmatch(value) else value
