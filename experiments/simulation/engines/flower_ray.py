"""Companies on Flower's Ray backend: processes on this machine, or on a Ray cluster that RAY_ADDRESS names.

All machines of a cluster need the run's folder at one path. The state of a company travels with every message.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend

from ....client.app import app
from ....errors import RunError
from ....protocol.transport.records import stamp_messages
from ....server.grid import InProcessGrid
from .nodes import Nodes


class OneCore(ClientApp):
    """The installed app in an actor, which Ray starts with as many threads as it likes."""

    def __call__(self, message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        stamp_messages()
        return app(message, context)


class RayGrid(InProcessGrid):
    """Actors of one core each; a thread for each of them waits for its answer."""

    def __init__(self, nodes: Nodes, workers: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
        if "RAY_ADDRESS" not in os.environ:
            own |= {"num_cpus": workers}
        self._backend = RayBackend({"init_args": own, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
        self._backend.build(OneCore)
        super().__init__(app, len(nodes.names), nodes.run_config, self._backend.num_workers, nodes.names)

    def answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        try:
            reply, self._contexts[node] = self._backend.process_message(message, self._contexts[node])
        except Exception as error:  # of Ray: the app itself answers with a code
            raise RunError(f"Ray could not run a company ({type(error).__name__})") from error
        return reply

    def close(self) -> None:
        super().close()
        with suppress(Exception):  # actors that have ended already
            self._backend.terminate()
