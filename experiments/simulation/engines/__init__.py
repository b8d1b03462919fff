"""Where a simulation's companies compute; the bits are the same in each.

`threads` of this process (the default), `processes` of this machine, or `ray`, Flower's simulation backend, which
also spans machines. A preset names none of them: an engine is chosen by a flag.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, closing
from importlib.util import find_spec

from flwr.serverapp import Grid

from ....client.app import app
from ....errors import InputError
from ....server.grid import InProcessGrid
from ....server.run_folder import RunFolder
from ....settings import Engine, SimulationSettings, Transport
from .nodes import Nodes
from .processes import ProcessGrid

MOST_WORKERS = 256
_MOST_CONNECTIONS = 100


def grid_of(run: RunFolder, engine: Engine, workers: int) -> AbstractContextManager[Grid]:
    """The companies of a prepared run, `workers` of them at once, a core each."""
    nodes = Nodes.of(run)
    if engine == "processes":
        return closing(ProcessGrid(nodes, workers))
    if engine == "ray":
        from .flower_ray import RayGrid

        return closing(RayGrid(nodes, workers))
    return closing(InProcessGrid(app, len(nodes.names), nodes.run_config, workers, nodes.names))


def check_engine(
    settings: SimulationSettings, engine: Engine, workers: int | None, transport: Transport
) -> None:
    """Refuse what cannot be together, before anything is made. Raises: InputError."""
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise InputError("--workers", workers, f"expected 1 to {MOST_WORKERS}")
    if transport == "grpc" and engine != "threads":
        raise InputError("--engine", engine, "over gRPC companies are threads; leave out --transport grpc")
    count = settings.companies.count
    if transport == "grpc" and count > _MOST_CONNECTIONS:
        rule = f"grpc connects every company, at most {_MOST_CONNECTIONS}; companies.count is {count}"
        raise InputError("--transport", transport, rule)
    if settings.protocol == "off":
        if transport == "grpc":
            raise InputError("--transport", transport, "without the protocol there are no messages")
        if engine == "ray":
            rule = "takes messages, of which there are none without the protocol; choose processes"
            raise InputError("--engine", engine, rule)
    if engine == "ray" and find_spec("ray") is None:
        raise InputError("--engine", engine, "ray is not installed: pip install 'fedblocks[simulation]'")
    if engine != "threads" and settings.device != "cpu":
        raise InputError(
            "--engine", engine, f"device={settings.device} belongs to one process; choose threads"
        )
