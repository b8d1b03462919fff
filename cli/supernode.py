"""`fedblocks supernode`: Flower's SuperNode for one company, which runs the installed apps and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def supernode(
    context: typer.Context,
    home: Annotated[Path, typer.Argument(help="the company's home: policy.toml, data, ledger")],
) -> None:
    """Answer a SuperLink's runs for the company at HOME; options after it are flower-supernode's.

    The bundle of a run is never fetched: the installed app runs, whatever the run says.
    """
    from ..client.supernode import serve

    serve(home, context.args)
