"""`fedblocks identity`: a company's key pair, made once in its own home.

The public half goes to the other companies, who pin it in their rosters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import InputError

people = Console(stderr=True)


def identity(
    home: Annotated[Path, typer.Argument(help="the company's home folder")],
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Make the company's identity key if it has none, and print the public key for the others' roster.toml."""
    from ..privacy.secure_aggregation import Identity
    from ..protocol.identity import IDENTITY_FILE, load_identity, save_identity

    if not home.is_dir():
        raise InputError("home", str(home), "no such folder")
    path = home / IDENTITY_FILE
    made = not path.exists()
    if made:
        save_identity(path, Identity.generate())
    public = load_identity(path).public.hex()
    if as_json:
        print(json.dumps({"identity": str(path), "public_key": public, "made": made}))
        return
    people.print(f"{'Made' if made else 'Found'} {escape(str(path))}; it never leaves this machine.")
    people.print(
        "Tell the others, over a channel you trust, and pin theirs in roster.toml under \\[companies]:"
    )
    print(public)
