"""A listening data plane for tests, dialled by agents or by hand."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedblocks.client.agent import Agent, App
from fedblocks.client.endpoint import Endpoint, EndpointSettings
from fedblocks.protocol.transport import OwnCertificate, PinnedCertificates
from fedblocks.protocol.transport.certificates import COORDINATOR
from fedblocks.protocol.transport.frames import CODES, OPTIONS, VERSION, hello
from fedblocks.protocol.transport.frames_pb2 import Begin, Frame
from fedblocks.protocol.transport.frames_pb2_grpc import DataPlaneStub
from fedblocks.server.stream import AggregationService, StreamGrid

Result = Callable[[], dict[str, object]]
NAMES = ("company-0", "company-1", "company-2")
RUN = "run-1"
CERTIFICATES = {name: OwnCertificate.create(name) for name in (*NAMES, COORDINATOR)}


def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


def record(text: str = "hello") -> RecordDict:
    return RecordDict({"message": ConfigRecord({"text": text})})


def answering(content: RecordDict) -> App:
    """An app that always answers the same."""
    return lambda message, context: Message(content, reply_to=message)


def saying(text: str) -> App:
    return answering(record(text))


def text_of(reply: Message | RecordDict) -> object:
    content = reply.content if isinstance(reply, Message) else reply
    return content.config_records["message"].get("text")


@dataclass
class Plane:
    """A listening service, and what is needed to dial it well or badly."""

    service: AggregationService
    port: int
    coordinator: OwnCertificate
    companies: dict[str, OwnCertificate]
    agents: list[tuple[Agent, threading.Thread]] = field(default_factory=list)
    channels: list[grpc.Channel] = field(default_factory=list)

    @property
    def grid(self) -> StreamGrid:
        return StreamGrid(self.service)

    def agent(self, name: str, app: App = echo, **changes: object) -> tuple[Agent, dict[str, str]]:
        """An agent in a thread; its end is put into the returned dict."""
        patience = float(str(changes.get("patience", 3.0)))
        settings = EndpointSettings(address=f"127.0.0.1:{self.port}", patience=patience)
        endpoint = Endpoint(settings, self.companies[name], self.coordinator.certificate)
        agent = Agent(endpoint, app, Context(1, 1, {}, RecordDict(), {}), str(changes.get("run", RUN)))
        ended: dict[str, str] = {}
        thread = threading.Thread(target=lambda: ended.update(code=agent.serve()), daemon=True)
        thread.start()
        self.agents.append((agent, thread))
        return agent, ended

    def up(self, *names: str) -> None:
        until(lambda: set(names) <= set(self.service.connected))

    def raw(self, own: OwnCertificate | None, frames: Iterator[Frame]) -> Iterator[Frame]:
        """A stream that sends whatever it is given."""
        credentials = (
            grpc.ssl_channel_credentials(self.coordinator.certificate)
            if own is None
            else own.channel_credentials(self.coordinator.certificate)
        )
        options = [*OPTIONS, ("grpc.ssl_target_name_override", COORDINATOR)]
        options.append(("grpc.use_local_subchannel_pool", 1))  # a connection of its own
        options = [(k, -1 if k == "grpc.max_send_message_length" else v) for k, v in options]
        channel = grpc.secure_channel(f"127.0.0.1:{self.port}", credentials, options)
        self.channels.append(channel)
        return DataPlaneStub(channel).Exchange(frames, timeout=20.0)  # type: ignore[no-any-return]


def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.01)


@contextmanager
def listening() -> Iterator[Plane]:
    """A service with three companies' certificates pinned; agents and channels are ended with it."""
    companies = {name: CERTIFICATES[name] for name in NAMES}
    pinned = PinnedCertificates({name: own.certificate for name, own in companies.items()})
    service = AggregationService(CERTIFICATES[COORDINATOR], pinned, RUN, greeting_timeout=0.5)
    plane = Plane(service, service.start("127.0.0.1:0"), CERTIFICATES[COORDINATOR], companies)
    try:
        yield plane
    finally:
        service.close()
        for channel in plane.channels:
            channel.close()
        for agent, thread in plane.agents:
            agent.stop()
            thread.join(timeout=5.0)


def held(first: list[Frame], release: threading.Event) -> Iterator[Frame]:
    """Frames, and then a stream that stays open."""
    yield from first
    release.wait(20.0)


def end_of(stream: Iterator[Frame]) -> str:
    """The code with which the coordinator closed a stream, or refused it in its trailers."""
    code = ""
    try:
        for frame in stream:
            if frame.WhichOneof("kind") == "close":
                code = frame.close.code
    except grpc.RpcError as error:
        if error.details() not in CODES:  # type: ignore[attr-defined]
            raise
        code = error.details()  # type: ignore[attr-defined]
    return code


def asked(plane: Plane, *names: str, timeout: float = 10.0, text: str = "hello") -> dict[str, object]:
    """The answers to one phase, by company."""
    nodes = {company: node for node, company in plane.grid.names.items()}
    messages = [Message(record(text), nodes[name], "query.keys") for name in names]
    replies = plane.grid.send_and_receive(messages, timeout=timeout)
    return {plane.grid.names[reply.metadata.src_node_id]: text_of(reply) for reply in replies}


def waiting_stream(plane: Plane, name: str) -> tuple[Iterator[Frame], queue.SimpleQueue[Frame | None]]:
    """A company by hand: greeted, and with a request in front of it."""
    out: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
    out.put(hello(RUN, "0"))
    stream = plane.raw(plane.companies[name], iter(out.get, None))
    assert next(stream).hello.version == VERSION
    plane.up(name)
    return stream, out


def begun(plane: Plane, stream: Iterator[Frame], seconds: float = 10.0) -> tuple[Begin, Result]:
    """A phase in another thread, and the request as the company by hand sees it."""
    found: dict[str, object] = {}
    started = time.monotonic()

    def ask() -> None:
        found.update(asked(plane, "company-0", "company-1", timeout=seconds))
        found["seconds"] = time.monotonic() - started

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    begin = next(stream).begin
    assert next(stream).chunk

    def result() -> dict[str, object]:
        thread.join(15.0)
        return found

    return begin, result
