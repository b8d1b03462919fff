"""Companies as threads of this process: the default engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ....client.app import app
from ....server.grid import InProcessGrid
from .nodes import Nodes


@contextmanager
def thread_grid(nodes: Nodes, workers: int) -> Iterator[InProcessGrid]:
    grid = InProcessGrid(app, len(nodes.names), nodes.run_config, workers, nodes.names)
    try:
        yield grid
    finally:
        grid.close()
