"""The data plane over real gRPC and real mutual TLS: who gets in, what a bad company costs, what leaves."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedblocks.client.agent import Agent, App
from fedblocks.client.endpoint import Endpoint, EndpointSettings
from fedblocks.client.protocol import STREAM, JoinReply, refused
from fedblocks.config import Settings
from fedblocks.errors import RunError
from fedblocks.experiments.preparation import make_plan, public_model, read_inputs
from fedblocks.privacy.secure_aggregation import ChannelKeys, Identity, Member, Roster
from fedblocks.server.cohort import join
from fedblocks.server.stream import AggregationService, StreamGrid
from fedblocks.transport import OwnCertificate, PinnedCertificates, encode, frames_of
from fedblocks.transport.certificates import COORDINATOR
from fedblocks.transport.frames import CHUNK, LARGEST_FRAME, OPTIONS, VERSION, hello
from fedblocks.transport.frames_pb2 import Begin, Frame, Hello
from fedblocks.transport.frames_pb2_grpc import DataPlaneStub

Result = Callable[[], dict[str, object]]
NAMES = ("company-0", "company-1", "company-2")
RUN = "run-1"
SECRET = "row 17 of the salaries"


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
        settings = EndpointSettings(address=f"127.0.0.1:{self.port}", patience=3.0)
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


@pytest.fixture(scope="module")
def owned() -> dict[str, OwnCertificate]:
    return {name: OwnCertificate.create(name) for name in (*NAMES, COORDINATOR)}


@pytest.fixture
def plane(owned: dict[str, OwnCertificate]) -> Iterator[Plane]:
    companies = {name: owned[name] for name in NAMES}
    pinned = PinnedCertificates({name: own.certificate for name, own in companies.items()})
    service = AggregationService(owned[COORDINATOR], pinned, RUN, greeting_timeout=0.5)
    plane = Plane(service, service.start("127.0.0.1:0"), owned[COORDINATOR], companies)
    yield plane
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
    """The code with which the coordinator closed a stream."""
    code = ""
    for frame in stream:
        if frame.WhichOneof("kind") == "close":
            code = frame.close.code
    return code


def asked(plane: Plane, *names: str, timeout: float = 10.0, text: str = "hello") -> dict[str, object]:
    """The answers to one phase, by company."""
    nodes = {company: node for node, company in plane.grid.names.items()}
    messages = [Message(record(text), nodes[name], "query.keys") for name in names]
    replies = plane.grid.send_and_receive(messages, timeout=timeout)
    return {plane.grid.names[reply.metadata.src_node_id]: text_of(reply) for reply in replies}


def test_companies_answer_under_their_own_names_and_leave_when_the_run_is_over(plane: Plane) -> None:
    ended = []
    for name in NAMES:
        ended.append(plane.agent(name, saying(f"{name} hello"))[1])
    plane.up(*NAMES)
    assert asked(plane, *NAMES) == {name: f"{name} hello" for name in NAMES}
    assert list(plane.grid.get_node_ids()) == [1, 2, 3]
    plane.service.close()
    until(lambda: all(ended))
    assert [end["code"] for end in ended] == ["done"] * 3


def test_large_messages_arrive_whole_in_both_directions(plane: Plane) -> None:
    plane.agent("company-0")
    plane.up("company-0")
    values = np.random.default_rng(0).integers(0, 2**32, 2_000_003, dtype=np.uint32)
    big = RecordDict({"a": ArrayRecord({"a": Array(values)})})
    (reply,) = plane.grid.send_and_receive([Message(big, 1, "train.block")], timeout=20.0)
    assert np.array_equal(reply.content.array_records["a"]["a"].numpy(), values)


def test_nobody_gets_in_without_a_certificate_or_without_tls(plane: Plane) -> None:
    with pytest.raises(grpc.RpcError):
        list(plane.raw(None, iter([hello(RUN, "0")])))
    channel = grpc.insecure_channel(f"127.0.0.1:{plane.port}")
    plane.channels.append(channel)
    with pytest.raises(grpc.RpcError):
        list(DataPlaneStub(channel).Exchange(iter([hello(RUN, "0")]), timeout=5.0))
    assert plane.service.connected == ()


def test_a_stranger_with_a_company_s_name_does_not_get_in(plane: Plane) -> None:
    """The name in a certificate is worth nothing; the key must be the pinned one's."""
    with pytest.raises(grpc.RpcError):
        list(plane.raw(OwnCertificate.create("company-0"), iter([hello(RUN, "0")])))
    assert plane.service.connected == ()


def test_a_company_cannot_vouch_for_another(plane: Plane) -> None:
    """company-1 signs a certificate in the name of company-0 with its own key, chain and all."""
    issuer = plane.companies["company-1"]
    parent = x509.load_pem_x509_certificate(issuer.certificate)
    signer = serialization.load_pem_private_key(issuer.key, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "company-0")]))
        .issuer_name(parent.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(parent.not_valid_before_utc)
        .not_valid_after(parent.not_valid_after_utc)
        .sign(signer, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for chain in (forged.public_bytes(encoding), forged.public_bytes(encoding) + issuer.certificate):
        try:
            code = end_of(plane.raw(OwnCertificate(chain, private), iter([hello(RUN, "0")])))
        except grpc.RpcError:
            code = "handshake"
        assert code in ("handshake", "unknown_certificate")
    assert plane.service.connected == ()


def test_a_company_does_not_talk_to_another_coordinator(plane: Plane) -> None:
    endpoint = Endpoint(
        EndpointSettings(address=f"127.0.0.1:{plane.port}", patience=0.5),
        plane.companies["company-0"],
        OwnCertificate.create(COORDINATOR).certificate,
    )
    agent = Agent(endpoint, echo, Context(1, 1, {}, RecordDict(), {}), RUN)
    assert agent.serve() == "unreachable"
    assert plane.service.connected == ()


def test_a_company_cannot_join_under_another_s_name(plane: Plane, small: Settings) -> None:
    """Not even with a channel key that the other has signed."""
    inputs = read_inputs(small)
    plan = make_plan(small, public_model(small, inputs.public_train, lambda step: None), "run")
    signing = {name: Identity.generate() for name in NAMES}
    roster = Roster({name: identity.public for name, identity in signing.items()})
    for name in NAMES:
        said = "company-0" if name == "company-1" else name
        channel = ChannelKeys.generate().signed(Member(said, signing[said], roster), plan.run, plan.digest())
        plane.agent(name, answering(JoinReply(said, channel).to_record()))
    plane.up(*NAMES)
    with pytest.raises(RunError, match="company-1 says it is company-0"):
        join(plane.grid, plan, {}, roster, 3)


@pytest.mark.parametrize("version", [0, VERSION + 1])
def test_another_version_is_refused_in_the_first_message(plane: Plane, version: int) -> None:
    frames = iter([Frame(hello=Hello(version=version, run=RUN))])
    assert end_of(plane.raw(plane.companies["company-0"], frames)) == "wrong_version"


def test_an_agent_waits_for_its_own_run_only_and_does_not_dial_again(plane: Plane) -> None:
    _, ended = plane.agent("company-0", run="run-2")
    until(lambda: bool(ended))
    assert ended == {"code": "wrong_run"}
    plane.agent("company-1", run="")
    plane.up("company-1")


def test_who_does_not_greet_loses_its_stream(plane: Plane) -> None:
    started = time.monotonic()
    assert end_of(plane.raw(plane.companies["company-0"], held([], threading.Event()))) == "malformed"
    assert time.monotonic() - started < 5.0


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


def bad_replies() -> dict[str, tuple[Callable[[Begin], list[Frame]], str]]:
    def begin(b: Begin, **changes: object) -> Frame:
        values = {"id": b.id, "kind": b.kind, "size": 10} | changes
        return Frame(begin=Begin(**values))  # type: ignore[arg-type]

    return {
        "declares too much": (lambda b: [begin(b, size=1 << 40)], "too_large"),
        "answers another question": (lambda b: [begin(b, id=b.id + 1)], "malformed"),
        "answers with another kind": (lambda b: [begin(b, kind="train.block")], "malformed"),
        "sends a chunk first": (lambda b: [Frame(chunk=b"x")], "malformed"),
        "sends more than declared": (lambda b: [begin(b), Frame(chunk=bytes(11))], "too_large"),
        "sends crumbs": (lambda b: [begin(b), Frame(chunk=b"x")], "malformed"),
        "sends a large chunk": (
            lambda b: [begin(b, size=CHUNK + 8), Frame(chunk=bytes(CHUNK + 8))],
            "too_large",
        ),
        "sends empty frames": (lambda b: [begin(b), Frame()], "malformed"),
        "greets again": (lambda b: [hello(RUN, "0")], "malformed"),
    }


@pytest.mark.parametrize("case", list(bad_replies()))
def test_a_bad_frame_costs_its_sender_the_stream_and_nobody_else(plane: Plane, case: str) -> None:
    make, code = bad_replies()[case]
    plane.agent("company-1")
    plane.up("company-1")
    stream, out = waiting_stream(plane, "company-0")
    begin, result = begun(plane, stream)
    for frame in make(begin):
        out.put(frame)
    assert end_of(stream) == code
    found = result()
    assert found["company-1"] == "hello"
    assert "company-0" not in found
    assert float(str(found["seconds"])) < 5.0  # the phase did not wait for its deadline
    out.put(None)


def test_a_frame_above_the_limit_is_refused_by_grpc_itself(plane: Plane) -> None:
    stream, out = waiting_stream(plane, "company-0")
    out.put(Frame(chunk=bytes(4 * LARGEST_FRAME)))
    with pytest.raises(grpc.RpcError) as error:
        list(stream)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    until(lambda: plane.service.connected == ())
    out.put(None)


def test_a_company_that_dies_in_the_middle_of_its_upload_is_missing_at_once(plane: Plane) -> None:
    plane.agent("company-1")
    plane.up("company-1")
    stream, out = waiting_stream(plane, "company-0")
    begin, result = begun(plane, stream, seconds=30.0)
    out.put(Frame(begin=Begin(id=begin.id, kind=begin.kind, size=CHUNK + 9)))
    out.put(Frame(chunk=bytes(CHUNK)))
    time.sleep(0.2)
    stream.cancel()  # type: ignore[attr-defined]
    found = result()
    assert set(found) == {"company-1", "seconds"}
    assert float(str(found["seconds"])) < 5.0
    out.put(None)


def test_a_hanging_company_meets_the_deadline_and_takes_part_again_when_it_is_back(plane: Plane) -> None:
    """Its late answer is to the phase it was asked in, and must not pass for an answer to the next one."""
    release = threading.Event()

    def hangs(message: Message, context: Context) -> Message:
        if text_of(message) == "hang":
            release.wait(20.0)
        return echo(message, context)

    plane.agent("company-0", hangs)
    plane.agent("company-1")
    plane.up("company-0", "company-1")
    started = time.monotonic()
    assert asked(plane, "company-0", "company-1", timeout=0.5, text="hang") == {"company-1": "hang"}
    assert 0.4 < time.monotonic() - started < 3.0
    started = time.monotonic()
    assert asked(plane, "company-0", "company-1", timeout=10.0, text="next") == {"company-1": "next"}
    assert time.monotonic() - started < 3.0  # it still owes an answer: nobody waits for it
    release.set()
    until(lambda: asked(plane, "company-0", text="again") == {"company-0": "again"})


def test_a_company_that_does_not_read_blocks_nobody(plane: Plane) -> None:
    """Flow control: the coordinator keeps one message for it, whatever else happens."""
    plane.agent("company-1")
    plane.up("company-1")
    stream, out = waiting_stream(plane, "company-0")
    big = RecordDict({"a": ArrayRecord({"a": Array(np.zeros(4_000_000, np.uint32))})})
    for _ in range(3):
        messages = [Message(big, node, "train.block") for node in (1, 2)]
        replies = list(plane.grid.send_and_receive(messages, timeout=2.0))
        assert [reply.metadata.src_node_id for reply in replies] == [2]
        assert plane.service.connected == ("company-0", "company-1")
    out.put(None)
    del stream  # gRPC would cancel a stream that nobody holds


def test_the_newest_stream_of_a_company_counts(plane: Plane) -> None:
    _, first = plane.agent("company-0", saying("first"))
    plane.up("company-0")
    plane.agent("company-0", saying("second"))
    until(lambda: bool(first))
    assert first == {"code": "replaced"}  # and it does not dial again to push the other out
    assert asked(plane, "company-0") == {"company-0": "second"}


def test_streams_of_one_company_are_limited_and_leave_room_for_the_others(plane: Plane) -> None:
    silent = [plane.raw(plane.companies["company-0"], held([], threading.Event())) for _ in range(12)]
    plane.agent("company-1")
    plane.up("company-1")
    assert asked(plane, "company-1") == {"company-1": "hello"}
    ends = [end_of(stream) for stream in silent]
    assert ends.count("malformed") <= 6  # held until they should have greeted
    assert ends.count("busy") == 12 - ends.count("malformed") > 0


def test_an_agent_comes_back_when_its_stream_breaks(plane: Plane) -> None:
    plane.agent("company-0")
    plane.up("company-0")
    plane.service._links["company-0"].end()  # as if the connection had been cut
    until(lambda: asked(plane, "company-0", timeout=2.0) == {"company-0": "hello"})


def test_an_agent_finds_a_coordinator_that_was_started_again(plane: Plane) -> None:
    _, ended = plane.agent("company-0")
    plane.up("company-0")
    plane.service._server.stop(None).wait()  # a crash: nobody is told that the run is over
    again = AggregationService(plane.coordinator, plane.service.pinned, RUN)
    again.start(f"127.0.0.1:{plane.port}")
    until(lambda: again.connected == ("company-0",))
    again.close()
    until(lambda: bool(ended))
    assert ended == {"code": "done"}


def test_an_agent_without_a_coordinator_gives_up_after_its_patience(plane: Plane) -> None:
    plane.service.close()
    _, ended = plane.agent("company-0")
    until(lambda: bool(ended), seconds=20.0)
    assert ended == {"code": "unreachable"}


@pytest.mark.parametrize("kind", ["train.block", "query.nothing", "nonsense", STREAM])
def test_no_text_of_an_error_crosses(plane: Plane, kind: str) -> None:
    def fails(message: Message, context: Context) -> Message:
        raise ValueError(SECRET)

    plane.agent("company-0", fails)
    plane.up("company-0")
    contents = list(plane.service.ask(kind, {"company-0": encode(record())}, 10.0))
    assert SECRET.encode() not in contents[0][1]
    (reply,) = plane.grid.send_and_receive([Message(record(), 1, "train.block")], timeout=10.0)
    assert refused(reply.content) == "internal"
    assert len(contents[0][1]) < 64


def test_a_request_that_is_no_record_is_refused_by_code(plane: Plane) -> None:
    plane.agent("company-0")
    plane.up("company-0")
    ((_, content),) = plane.service.ask("query.keys", {"company-0": b"\xff" * 40}, 10.0)
    assert b"malformed" in content


def test_an_answer_that_is_no_record_is_that_company_s_absence(plane: Plane) -> None:
    stream, out = waiting_stream(plane, "company-0")
    begin, result = begun(plane, stream)
    for frame in frames_of(begin.id, begin.kind, b"\xff" * 30):
        out.put(frame)
    assert result()["company-0"] is None  # a refusal with the code "malformed"
    assert plane.service.connected == ("company-0",)
    out.put(None)


def test_random_bytes_never_bring_the_service_down(plane: Plane) -> None:
    rng = np.random.default_rng(0)
    credentials = plane.companies["company-0"].channel_credentials(plane.coordinator.certificate)
    options = [*OPTIONS, ("grpc.ssl_target_name_override", COORDINATOR)]
    channel = grpc.secure_channel(f"127.0.0.1:{plane.port}", credentials, options)
    plane.channels.append(channel)
    exchange = channel.stream_stream("/fedblocks.transport.DataPlane/Exchange")
    greeting = hello(RUN, "0").SerializeToString()
    for i in range(300):
        garbage = [rng.bytes(int(rng.integers(0, 60))) for _ in range(3)]
        with suppress(grpc.RpcError):
            for reply in exchange(iter([greeting, *garbage] if i % 2 else garbage), timeout=5.0):
                assert Frame.FromString(reply).WhichOneof("kind") in ("hello", "close")
    plane.agent("company-1")
    plane.up("company-1")
    assert asked(plane, "company-1") == {"company-1": "hello"}


def test_a_port_in_use_is_an_error_and_not_a_second_coordinator(plane: Plane) -> None:
    service = AggregationService(plane.coordinator, plane.service.pinned, RUN)
    with pytest.raises(RunError, match="listen"):
        service.start(f"127.0.0.1:{plane.port}")
