"""The data plane's wire: cutting and joining, limits before memory, hostile frames, generated code, certificates."""

from __future__ import annotations

import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

import fedblocks
from fedblocks.errors import InputError, ProtocolError
from fedblocks.protocol.transport import (
    Closed,
    Incoming,
    OwnCertificate,
    PinnedCertificates,
    decode,
    encode,
    frames_of,
    incoming,
)
from fedblocks.protocol.transport.certificates import COORDINATOR
from fedblocks.protocol.transport.frames import CHUNK, CODES, VERSION, close, greeted, hello
from fedblocks.protocol.transport.frames_pb2 import Begin, Field, Frame, Head, Hello, Sizes
from fedblocks.protocol.transport.records import LARGEST_HEAD, bytes_array

ROOT = Path(fedblocks.__file__).parent
LIMIT = 1 << 20

begins = st.builds(
    Begin,
    id=st.integers(0, 2**64 - 1),
    kind=st.text(max_size=8) | st.text(min_size=200, max_size=200),
    size=st.integers(0, 64) | st.integers(0, 2**64 - 1),
    timeout=st.floats(),
)
any_frames = st.lists(
    st.builds(Frame, begin=begins)
    | st.builds(Frame, chunk=st.binary(max_size=40))
    | st.builds(Frame, hello=st.builds(Hello, version=st.integers(0, 2**32 - 1), run=st.text(max_size=200)))
    | st.builds(lambda code: close(code), st.text(max_size=8))
    | st.just(Frame()),
    max_size=12,
)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_a_message_comes_out_as_it_went_in(size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    frames = [Frame.FromString(f.SerializeToString()) for f in frames_of(7, "query.keys", content, 2.5)]
    assert all(len(frame.chunk) <= CHUNK for frame in frames)
    (message,) = incoming(frames, lambda begin: size)
    assert (message.id, message.kind, message.timeout) == (7, "query.keys", 2.5)
    assert message.content == content


def code_of(read: Callable[[], object]) -> str | None:
    """The code with which reading ends, if it is refused. Anything else that is raised fails the test."""
    try:
        read()
    except (ProtocolError, Closed) as end:
        return end.code
    return None


@settings(max_examples=3000, deadline=None)
@given(any_frames)
def test_no_sequence_of_frames_does_more_than_a_fixed_code(frames: list[Frame]) -> None:
    messages: list[Incoming] = []
    assert code_of(lambda: messages.extend(incoming(frames, lambda begin: LIMIT))) in {None, *CODES}
    assert all(len(message.content) <= LIMIT for message in messages)
    assert code_of(lambda: greeted(iter(frames))) in {None, *CODES}


@pytest.mark.slow
def test_a_million_damaged_conversations_end_in_codes() -> None:
    """Good frames flipped, swapped and repeated, and cut records, from a seed: no crash, no hang."""
    rng = np.random.default_rng(0)
    good = [
        f.SerializeToString()
        for f in (hello("run", "1"), *frames_of(9, "query.keys", b"x" * 90), close("done"))
    ]
    record = encode(RecordDict({"message": ConfigRecord({"a": [b"1", b"2"], "b": b"bytes", "c": "text"})}))
    for i in range(1_000_000):
        pieces = [bytearray(good[k]) for k in rng.integers(0, len(good), 4)]
        damaged = pieces[int(rng.integers(4))]
        damaged[int(rng.integers(len(damaged)))] ^= int(rng.integers(1, 256))
        try:
            frames = [Frame.FromString(bytes(piece)) for piece in pieces]
        except DecodeError:  # gRPC's to answer: such a frame never reaches ours
            continue
        messages: list[Incoming] = []
        ended = code_of(partial(lambda m, f: m.extend(incoming(f, lambda begin: LIMIT)), messages, frames))
        assert ended in {None, *CODES}
        assert sum(len(message.content) for message in messages) <= LIMIT
        if i % 4 == 0:
            cut = bytearray(record[: int(rng.integers(1, len(record) + 1))])
            cut[int(rng.integers(len(cut)))] ^= int(rng.integers(1, 256))
            assert code_of(partial(decode, bytes(cut))) in (None, "malformed")


def test_a_declared_size_is_refused_before_anything_is_kept() -> None:
    def endless() -> Iterator[Frame]:
        yield Frame(begin=Begin(id=1, kind="train.block", size=2**63))
        raise AssertionError("read on after a size above the limit")

    with pytest.raises(ProtocolError, match="too_large"):
        list(incoming(endless(), lambda begin: LIMIT))


def test_memory_grows_with_what_has_arrived_not_with_what_was_declared() -> None:
    def slow() -> Iterator[Frame]:
        yield Frame(begin=Begin(id=1, kind="train.block", size=1 << 30))
        for _ in range(2):
            yield Frame(chunk=bytes(CHUNK))

    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="malformed"):
            list(incoming(slow(), lambda begin: 1 << 30))
        assert tracemalloc.get_traced_memory()[1] < 8 * CHUNK
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([Frame(chunk=b"x")], "malformed"),
        ([Frame(begin=Begin(size=2)), Frame(chunk=b"xyz")], "too_large"),
        ([Frame(begin=Begin(size=2)), Frame(chunk=b"")], "malformed"),
        ([Frame(begin=Begin(size=2)), Frame(chunk=b"x"), Frame(chunk=b"y")], "malformed"),
        ([Frame(begin=Begin(size=CHUNK * 2)), Frame(chunk=bytes(CHUNK + 1))], "too_large"),
        ([Frame(begin=Begin(size=2)), Frame(begin=Begin(size=2))], "malformed"),
        ([Frame(begin=Begin(size=0, kind="k" * 200))], "malformed"),
        ([hello("run", "0")], "malformed"),
    ],
)
def test_frames_out_of_place_have_their_codes(frames: list[Frame], code: str) -> None:
    with pytest.raises(ProtocolError) as error:
        list(incoming(frames, lambda begin: LIMIT))
    assert error.value.code == code


def test_a_greeting_of_another_version_is_refused() -> None:
    assert greeted(iter([hello("run", "1")])).run == "run"
    for version in (0, VERSION - 1, VERSION + 1):
        with pytest.raises(ProtocolError, match="wrong_version"):
            greeted(iter([Frame(hello=Hello(version=version, run="run"))]))


def test_a_code_from_the_wire_is_one_of_ours_or_malformed() -> None:
    """Would catch a peer's text that travels on into logs or metrics."""
    assert Closed("done").code == "done"
    assert Closed("<script>").code == "malformed"


def test_bytes_of_version_2_never_change() -> None:
    """Golden: whoever has to change these bytes has to raise VERSION."""
    assert VERSION == 2
    sent = [hello("run", "0.1"), *frames_of(3, "query.keys", b"ab", 1.5), close("done")]
    assert [frame.SerializeToString().hex() for frame in sent] == [
        "0a0c080212037275" + "6e1a03302e31",
        "12190803120a71756572792e6b657973" + "180221000000000000f83f",
        "1a026162",
        "22060a04646f6e65",
    ]
    fields = {"a": 1, "b": b"xy", "c": [b"z"], "d": "t", "e": ["u"], "f": 0.5, "g": True}
    record = RecordDict({"message": ConfigRecord(fields), "arrays": ArrayRecord({"h": bytes_array(b"w")})})
    assert encode(record).hex() == (
        "00000046" + "0a050a01611802" + "0a050a01623802" + "0a080a016342030a0101" + "0a060a0164120174"
        "0a080a016532030a0175"
        + "0a0c0a016621000000000000e03f"
        + "0a050a01672801"
        + "0a050a01684801"
        + "78797a77"
    )


def content_of(head: Head, data: bytes = b"") -> bytes:
    """A record's bytes by hand."""
    content = head.SerializeToString()
    return len(content).to_bytes(4, "big") + content + data


def nested(number: int, content: bytes) -> bytes:
    """A field of the protobuf encoding that holds `content`."""
    size, length = len(content), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2]) + bytes([*length, size]) + content


def test_records_arrive_as_they_were_sent() -> None:
    """Would catch a field whose type or bytes become another's."""
    fields = {
        "a": -1, "b": [b"x", b"", b"yz"], "c": "text \u2603", "d": 0.1, "e": True, "f": b"bytes", "g": ["", "h"],
        "big": 2**63 - 1, "small": -(2**63), "none": [], "empty": b"", "zero": 0, "nought": 0.0, "no": False,
    }  # fmt: skip
    arrays = {"w": bytes_array(b"weights"), "nothing": bytes_array(b"")}
    record = RecordDict({"message": ConfigRecord(fields), "arrays": ArrayRecord(arrays)})
    back = decode(encode(record))
    assert back == record
    assert {k: type(v) for k, v in back.config_records["message"].items()} == {
        k: type(v) for k, v in fields.items()
    }
    assert decode(encode(RecordDict())) == RecordDict({"message": ConfigRecord()})


def test_a_record_of_another_make_is_not_encoded() -> None:
    for record in (
        RecordDict({"metrics": MetricRecord({"loss": 0.5})}),
        RecordDict({"other": ConfigRecord()}),
        RecordDict({"message": ConfigRecord({"numbers": [1, 2]})}),
        RecordDict({"message": ArrayRecord()}),
    ):
        assert code_of(partial(encode, record)) == "malformed"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\1",
        b"\0\0\0\1\xff",
        b"\0\0\0\0behind",
        content_of(Head(fields=[Field(name="a")])),
        content_of(Head(fields=[Field(name="a", integer=1), Field(name="a", integer=1)])),
        content_of(Head(fields=[Field(name="a", array_size=0), Field(name="a", integer=1)])),
        content_of(Head(fields=[Field(name="a", bytes_size=3)]), b"ab"),
        content_of(Head(fields=[Field(name="a", bytes_size=2**64 - 1)]), b"ab"),
        content_of(Head(fields=[Field(name="a", bytes_size=1)]), b"ab"),
        content_of(Head(fields=[Field(name="a", bytes_sizes=Sizes(values=[1, 2]))]), b"ab"),
    ],
)
def test_a_record_that_does_not_add_up_is_malformed(content: bytes) -> None:
    assert code_of(partial(decode, content)) == "malformed"


@settings(max_examples=2000, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_record_are_malformed(content: bytes) -> None:
    assert code_of(lambda: decode(content)) in (None, "malformed")
    assert code_of(lambda: decode(len(content).to_bytes(4, "big") + content)) in (None, "malformed")


def test_a_message_that_would_take_far_more_room_than_it_is_long_is_refused() -> None:
    """In Flower's encoding 17 MB of empty records took 683 MB; a head of that size is refused before it is parsed."""
    for count in (8_500_000, LARGEST_HEAD // 2 + 1):
        content = (2 * count).to_bytes(4, "big") + b"\n\0" * count
        tracemalloc.start()
        try:
            assert code_of(partial(decode, content)) == "too_large"
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
    text = RecordDict({"message": ConfigRecord({"text": "x" * LARGEST_HEAD})})
    assert code_of(partial(encode, text)) == "too_large"


# The most memory that a process has had, of which exec begins a new count, where getrusage goes on with the parent's.
TAKES = """
import sys
from fedblocks.protocol.transport.records import decode
from fedblocks.errors import ProtocolError

def kilobytes(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))

content = sys.stdin.buffer.read()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = kilobytes("VmRSS")
try:
    kept = decode(content)
except ProtocolError:
    pass
print(kilobytes("VmHWM") - before)
"""
HUNGRIEST = {
    "fields": b"\n\0" * (LARGEST_HEAD // 2),
    "named fields": b"".join(b"\n\x0a\n\x06%06x\x18\0" % i for i in range(LARGEST_HEAD // 12)),
    "sizes": nested(1, nested(1, b"a") + nested(8, nested(1, bytes(LARGEST_HEAD - 30)))),
    "texts": nested(1, nested(1, b"a") + nested(6, b"\n\0" * (LARGEST_HEAD // 2 - 15))),
}


@pytest.mark.parametrize("name", HUNGRIEST)
def test_the_hungriest_head_takes_a_bounded_amount(name: str) -> None:
    """In a process of its own, since protobuf's memory is not Python's. Would catch a larger limit of the head."""
    head = HUNGRIEST[name]
    assert LARGEST_HEAD - 40 <= len(head) <= LARGEST_HEAD
    content = len(head).to_bytes(4, "big") + head
    ran = subprocess.run(
        [sys.executable, "-c", TAKES], input=content, capture_output=True, check=True, timeout=60
    )
    assert len(head) >> 10 < int(ran.stdout) < 48 << 10  # kilobytes


def test_a_large_model_and_a_thousand_companies_fit() -> None:
    names = [f"company-{i}" for i in range(1000)]
    message = ConfigRecord({"a": [b"x" * 200] * 1000, "names": names})
    arrays = ArrayRecord({f"block-{i}": bytes_array(bytes(100_000)) for i in range(64)})
    record = RecordDict({"message": message, "arrays": arrays})
    assert decode(encode(record)) == record


def test_a_cut_or_altered_record_is_malformed_or_another_record() -> None:
    good = encode(RecordDict({"message": ConfigRecord({"a": [b"1", b"23"], "b": "text", "c": 3})}))
    for i in range(len(good)):
        for bad in (good[:i], good[:i] + bytes([good[i] ^ 0x55]) + good[i + 1 :]):
            assert code_of(partial(decode, bad)) in (None, "malformed")


def test_generated_code_is_that_of_the_proto(tmp_path: Path) -> None:
    (tmp_path / "fedblocks").symlink_to(ROOT)
    out = tmp_path / "out"
    out.mkdir()
    command = [
        sys.executable, "-m", "grpc_tools.protoc", "-I", str(tmp_path), f"--python_out={out}",
        f"--pyi_out={out}", f"--grpc_python_out={out}", "fedblocks/protocol/transport/frames.proto",
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=60)
    made = sorted((out / "fedblocks" / "protocol" / "transport").iterdir())
    assert len(made) == 3
    for file in made:
        committed = ROOT / "protocol" / "transport" / file.name
        assert file.read_text() == committed.read_text(), f"run `make proto`: {file.name}"


def test_a_private_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    OwnCertificate.create("company-0").save(tmp_path)
    key = tmp_path / "own.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    loaded = OwnCertificate.load(tmp_path)
    assert "PRIVATE" not in repr(loaded)
    with pytest.raises(InputError, match="already there"):
        OwnCertificate.create("company-0").save(tmp_path)
    key.chmod(0o640)
    with pytest.raises(InputError, match="owner"):
        OwnCertificate.load(tmp_path)


def test_each_certificate_is_known_by_its_own_bytes(tmp_path: Path) -> None:
    a, b, imposter = (OwnCertificate.create(name) for name in ("a", "b", "a"))
    (tmp_path / "a.pem").write_bytes(a.certificate)
    (tmp_path / "b.pem").write_bytes(b.certificate)
    pinned = PinnedCertificates.load(tmp_path)
    assert pinned.companies == ("a", "b")
    assert (pinned.owner(a.certificate), pinned.owner(b.certificate)) == ("a", "b")
    assert pinned.owner(imposter.certificate) is None
    assert pinned.owner(b"") is None
    assert pinned.owner(b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----") is None


@pytest.mark.parametrize("name", ["b", COORDINATOR])
def test_a_certificate_filed_under_another_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="made out to"):
        PinnedCertificates({"a": OwnCertificate.create(name).certificate})


def test_pins_of_two_certificates_in_one_file_or_of_none_is_refused() -> None:
    one = OwnCertificate.create("a").certificate
    for certificates in ({"a": one + one}, {"a": b""}, {}):
        with pytest.raises(InputError):
            PinnedCertificates(certificates)
