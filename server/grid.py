"""An in-process Flower Grid: companies in this process, no server, no Ray.

Every message is serialised and parsed both ways, so that what breaks on the wire breaks here too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from flwr.app import DEFAULT_TTL, Context, Message, Metadata, RecordDict
from flwr.app.message.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid


class InProcessGrid(Grid):
    """Runs `app` for nodes 1 to `companies`, each with its own context."""

    def __init__(
        self, app: ClientApp, companies: int, run_config: dict[str, str | int | float | bool]
    ) -> None:
        self._app = app
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
        self._created = 0

    def set_run(self, run: Any) -> None:
        """There is no other run to choose."""

    @property
    def run(self) -> Any:
        raise NotImplementedError("an in-process grid holds no Flower run")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        self._created += 1
        metadata = Metadata(
            run_id=1,
            message_id=f"message-{self._created}",
            src_node_id=0,
            dst_node_id=dst_node_id,
            reply_to_message_id="",
            group_id=group_id,
            created_at=time.time(),
            ttl=DEFAULT_TTL if ttl is None else ttl,
            message_type=message_type,
        )
        return make_message(metadata, content)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> str:
        reply = self._app(_over_the_wire(message), self._contexts[message.metadata.dst_node_id])
        self._replies[message.metadata.message_id] = _over_the_wire(reply)
        return message.metadata.message_id


def _over_the_wire(message: Message) -> Message:
    return message_from_proto(ProtoMessage.FromString(message_to_proto(message).SerializeToString()))
