"""An in-process Flower Grid: companies in this process, no server, no Ray.

Every message is serialised and parsed both ways, so that errors of serialisation show here too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid

from ..protocol.transport.records import stamp_messages


class OwnGrid(Grid):
    """The parts of a Grid that is not of a Flower run."""

    def set_run(self, run: Any) -> None:
        """Does nothing: there is no run to choose."""

    @property
    def run(self) -> Any:
        raise NotImplementedError("this grid belongs to no Flower run")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)


def names_of(grid: Grid) -> Mapping[int, str]:
    """Whom the transport knows to be at a node, if it does."""
    names: Mapping[int, str] = getattr(grid, "names", {})
    return names


class GridOver(OwnGrid):
    """Passes everything to another grid; who inherits changes what it means to."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    @property
    def names(self) -> Mapping[int, str]:
        return names_of(self._grid)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)


class InProcessGrid(OwnGrid):
    """Runs `app` for nodes 1 to `companies`, each with its own context, `workers` of them at once.

    Each worker is one thread that computes on one core, so that results do not depend on their number. `names`: who
    is at which node, where that is known.
    """

    def __init__(
        self,
        app: ClientApp,
        companies: int,
        run_config: dict[str, str | int | float | bool],
        workers: int = 1,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self._app = app
        self.names = dict(names or {})
        self._workers = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        self._contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": node - 1, "num-partitions": companies},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for node in range(1, companies + 1)
        }
        self._replies: dict[str, Message] = {}
        self._numbers = itertools.count(1)
        stamp_messages()

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return list(self._workers.map(self._deliver, [self._stamped(message) for message in messages]))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _stamped(self, message: Message) -> Message:
        message.metadata.__dict__["_message_id"] = (
            f"message-{next(self._numbers)}"  # as a SuperLink does on receipt
        )
        return message

    def _deliver(self, message: Message) -> str:
        self._replies[message.metadata.message_id] = self.answer(message)
        return message.metadata.message_id

    def answer(self, message: Message) -> Message:
        """What the app answers; a grid whose companies compute elsewhere has another way to it."""
        reply = self._app(from_wire(to_wire(message)), self._contexts[message.metadata.dst_node_id])
        return from_wire(to_wire(reply))

    def close(self) -> None:
        """Stop the workers."""
        self._workers.shutdown(cancel_futures=True)


def to_wire(message: Message) -> bytes:
    """As Flower serialises a message."""
    found: bytes = message_to_proto(message).SerializeToString()
    return found


def from_wire(data: bytes) -> Message:
    """The message that `to_wire` has serialised."""
    return message_from_proto(ProtoMessage.FromString(data))
