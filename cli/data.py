"""`fedblocks data`: what is in a file, and a contract to read it by."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import InputError


class DataKindName(StrEnum):
    TABLE = "table"
    IMAGES = "images"
    TEXT = "text"
    LABELLED_TEXT = "labelled-text"
    SERIES = "series"


people = Console(stderr=True)
data = typer.Typer(no_args_is_help=True, help="Look at data before it is used.")


@data.callback()
def group() -> None:
    """Look at data before it is used."""


@data.command()
def inspect(
    source: Annotated[str, typer.Argument(help="a file, a folder, a database's URL or a built-in set")],
    write: Annotated[Path | None, typer.Option("--write", help="write the drafted contract here")] = None,
    kind: Annotated[DataKindName | None, typer.Option(help="what it is, if it does not show")] = None,
    table: Annotated[str | None, typer.Option(help="the table of a database")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Print what is in a source, what looks odd, and a contract drafted from it. Nothing leaves this machine."""
    from .. import atomic_file
    from ..client.data.findings import on_one_line
    from ..client.data.looking import inspect_source

    if write is not None and write.exists():
        raise InputError("--write", str(write), "exists already; name another file, or remove it")
    found = inspect_source(source, None if kind is None else kind.value, table)
    if write is not None:
        atomic_file.write(write, found.draft.encode())
    if as_json:
        print(json.dumps(found.to_json() | {"written": None if write is None else str(write)}))
        return
    facts = Table(title=escape(source), show_header=False)
    for name, value in found.findings.facts.items():
        facts.add_row(escape(name), escape(value))
    people.print(facts)
    for note in found.findings.notes:
        people.print(f"[yellow]note:[/] {escape(note)}", highlight=False)
    if found.example:
        people.print("The first example becomes:")
        for name, value in found.example.items():
            people.print(f"  {escape(on_one_line(name))}: {escape(on_one_line(value))}", highlight=False)
    if write is None:
        print(found.draft)
    else:
        people.print(f"Wrote {escape(str(write))}. Read it before you use it.")
