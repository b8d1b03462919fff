"""What a bad or failing company costs on the data plane, and what of it leaves: its own place, and codes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import grpc
import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict
from support.streaming import (
    RUN,
    Plane,
    asked,
    begun,
    echo,
    end_of,
    listening,
    record,
    text_of,
    until,
    waiting_stream,
)

from fedblocks.protocol.messages import STREAM, refused
from fedblocks.protocol.transport import decode, encode, frames_of
from fedblocks.protocol.transport.certificates import COORDINATOR
from fedblocks.protocol.transport.frames import CHUNK, LARGEST_FRAME, OPTIONS, hello
from fedblocks.protocol.transport.frames_pb2 import Begin, Frame
from fedblocks.protocol.transport.records import bytes_array

CODES = {"nonsense": "unknown_message", STREAM: "wrong_phase"}
SECRET = "row 17 of the salaries"


@pytest.fixture
def plane() -> Iterator[Plane]:
    with listening() as plane:
        yield plane


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
    big = RecordDict({"arrays": ArrayRecord({"a": bytes_array(bytes(16_000_000))})})
    for _ in range(3):
        messages = [Message(big, node, "train.block") for node in (1, 2)]
        replies = list(plane.grid.send_and_receive(messages, timeout=2.0))
        assert [reply.metadata.src_node_id for reply in replies] == [2]
        assert plane.service.connected == ("company-0", "company-1")
    out.put(None)
    del stream  # gRPC would cancel a stream that nobody holds


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
    assert refused(decode(contents[0][1])) == CODES.get(kind, "internal")


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
    exchange = channel.stream_stream("/fedblocks.protocol.transport.DataPlane/Exchange")
    greeting = hello(RUN, "0").SerializeToString()
    for i in range(300):
        garbage = [rng.bytes(int(rng.integers(0, 60))) for _ in range(3)]
        with suppress(grpc.RpcError):
            for reply in exchange(iter([greeting, *garbage] if i % 2 else garbage), timeout=5.0):
                assert Frame.FromString(reply).WhichOneof("kind") in ("hello", "close")
    plane.agent("company-1")
    plane.up("company-1")
    assert asked(plane, "company-1") == {"company-1": "hello"}
