"""A run's companies and coordinator on this machine over the real data plane: gRPC, mutual TLS, loopback.

Keys and certificates are made for the run and never written. Companies are threads, `workers` of them at work
at once, each on one core, so that results do not depend on their number.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from flwr.app import Context, Message

from ...client.agent import Agent, App
from ...client.endpoint import Endpoint, EndpointSettings
from ...errors import RunError
from ...protocol.transport import OwnCertificate, PinnedCertificates
from ...protocol.transport.certificates import COORDINATOR
from ...server.run_folder import RunFolder
from ...server.stream import AggregationService, StreamGrid
from ...settings import read_simulation
from .engines.nodes import Nodes

_GATHER = 60.0


@contextmanager
def loopback_grid(run: RunFolder, app: App) -> Iterator[StreamGrid]:
    """The data plane of a prepared simulation, all its companies connected."""
    settings = read_simulation(run.path)
    nodes = Nodes.of(run)
    names = list(nodes.names.values())
    coordinator, companies = (
        OwnCertificate.create(COORDINATOR),
        {name: OwnCertificate.create(name) for name in names},
    )
    pinned = PinnedCertificates({name: own.certificate for name, own in companies.items()})
    name = run.plan().run
    service = AggregationService(coordinator, pinned, name)
    at_once = threading.Semaphore(settings.workers)

    def in_turn(message: Message, context: Context) -> Message:
        with at_once:
            return app(message, context)

    def serve(agent: Agent) -> None:
        torch.set_num_threads(1)
        agent.serve()

    endpoint = EndpointSettings(address=f"127.0.0.1:{service.start('127.0.0.1:0')}")
    agents = [
        Agent(Endpoint(endpoint, companies[own], coordinator.certificate), in_turn, context, name)
        for own, context in zip(names, map(nodes.context, nodes.names), strict=True)
    ]
    threads = [threading.Thread(target=serve, args=(agent,), daemon=True) for agent in agents]
    try:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + _GATHER
        while len(service.connected) < len(names):
            if time.monotonic() > deadline:
                raise RunError("the companies did not come up on the data plane")
            time.sleep(0.02)
        yield StreamGrid(service)
    finally:
        service.close()
        for agent in agents:
            agent.stop()
        for thread in threads:
            thread.join(timeout=5.0)
