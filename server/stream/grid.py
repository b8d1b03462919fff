"""The data plane as a Flower Grid: another transport for the same round and handlers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flwr.app import Message

from ...errors import ProtocolError
from ...protocol.messages import refusal
from ...protocol.transport.records import decode, encode, stamp_messages
from ..grid import OwnGrid
from .service import AggregationService


class StreamGrid(OwnGrid):
    """Companies with a pinned certificate are nodes 1, 2, ... in this order; only connected ones are listed."""

    def __init__(self, service: AggregationService) -> None:
        self._service = service
        self.names = dict(enumerate(service.pinned.companies, start=1))
        self._nodes = {company: node for node, company in self.names.items()}
        stamp_messages()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Replies as they arrive; a company that does not answer in time is missing. All messages of one kind."""
        sent = {self.names[message.metadata.dst_node_id]: message for message in messages}
        encoded: dict[int, bytes] = {}
        contents = {}
        for company, message in sent.items():
            key = id(message.content)  # most phases send one record to everybody
            if key not in encoded:
                encoded[key] = encode(message.content)
            contents[company] = encoded[key]
        kinds = {message.metadata.message_type for message in sent.values()}
        if len(kinds) > 1 or timeout is None:
            raise NotImplementedError("one kind of message, with a timeout")
        if not kinds:
            return []
        return self._replies(sent, self._service.ask(kinds.pop(), contents, timeout))

    def _replies(self, sent: dict[str, Message], answers: Iterator[tuple[str, bytes]]) -> Iterator[Message]:
        for company, content in answers:
            try:
                record = decode(content)
            except ProtocolError as error:
                record = refusal(error)
            yield Message(record, reply_to=sent[company])

    def get_node_ids(self) -> Iterable[int]:
        return [self._nodes[company] for company in self._service.connected]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError("send and receive in one")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError("send and receive in one")

    def close(self) -> None:
        """End the run for the companies and stop listening."""
        self._service.close()
