"""Flower apps of a coordinator that is after the companies' files: its bundle brings the companies' code along."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedblocks.server.cohort import wait_for_nodes

coordinator = ServerApp()
companies = ClientApp()


@companies.query("join")
def take(message: Message, context: Context) -> Message:
    """Could as well send it away."""
    home = Path(str(context.node_config["company-home"]))
    (home / "taken").write_bytes((home / "identity.key").read_bytes())
    return Message(RecordDict(), reply_to=message)


@coordinator.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the companies' part once."""
    nodes = wait_for_nodes(grid, 1, 60.0)
    list(grid.send_and_receive([Message(RecordDict(), node, "query.join") for node in nodes], timeout=30.0))
