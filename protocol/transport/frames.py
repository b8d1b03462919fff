"""Messages as frames: a Begin that declares id, kind and size, then chunks until the size is reached.

The reader trusts nothing: a declared size is compared with a limit before anything is stored, memory grows only with
received bytes, and anything unexpected raises ProtocolError with a fixed code:

    wrong_version        the other side uses another version of `frames.proto`
    wrong_run            the company is waiting for another run
    unknown_certificate  the certificate is not pinned
    malformed            an unexpected frame
    too_large            a message or a chunk above its limit
    busy                 more simultaneous streams than a company needs
    replaced             a newer stream of the same company took over
    internal             an error of the coordinator
    done                 the run is over
    later                the coordinator ends and will be back: dial again

A code ends a stream in a Close frame; the coordinator's refusals (unknown_certificate, busy, internal) are sent in
the trailers instead, as the status text, since a frame would have to wait for a peer that does not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ...errors import ProtocolError
from .frames_pb2 import Begin, Close, Frame, Hello

VERSION = 2
CHUNK = 1 << 19  # size of every chunk but a message's last; part of the version
LARGEST_FRAME = CHUNK + 1024
LONGEST_NAME = 128

# After these a company does not dial again.
FINAL = frozenset({"done", "wrong_version", "wrong_run", "unknown_certificate", "replaced"})
CODES = FINAL | {"malformed", "too_large", "busy", "internal", "later"}

# A dead peer is noticed within half a minute, even if a firewall drops packets silently.
OPTIONS = [
    ("grpc.max_receive_message_length", LARGEST_FRAME),
    ("grpc.max_send_message_length", LARGEST_FRAME),
    (
        "grpc.http2.max_frame_size",
        1 << 20,
    ),  # one HTTP/2 frame a chunk instead of 32: saves 4% of a secure step
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
]


class Closed(Exception):
    """The other side has ended the stream; `code` is one of CODES, "malformed" for any other code."""

    def __init__(self, code: str) -> None:
        self.code = code if code in CODES else "malformed"
        super().__init__(self.code)


@dataclass(frozen=True)
class Incoming:
    """One whole message."""

    id: int
    kind: str
    content: bytes
    timeout: float


def hello(run: str, package: str) -> Frame:
    return Frame(hello=Hello(version=VERSION, run=run, package=package))


def close(code: str) -> Frame:
    return Frame(close=Close(code=code))


def greeted(frames: Iterator[Frame]) -> Hello:
    """The other side's first frame, which must be a greeting of this version.

    Raises:
        ProtocolError: it is not.
        Closed: the other side has ended the stream.
    """
    frame = next(frames, None)
    if frame is None:
        raise ProtocolError("malformed", "the stream ended before its first frame")
    kind = frame.WhichOneof("kind")
    if kind == "close":
        raise Closed(frame.close.code)
    if kind != "hello":
        raise ProtocolError("malformed", "the first frame is not a greeting")
    if frame.hello.version != VERSION:
        raise ProtocolError("wrong_version", f"expected version {VERSION}, got {frame.hello.version}")
    if len(frame.hello.run) > LONGEST_NAME or len(frame.hello.package) > LONGEST_NAME:
        raise ProtocolError("malformed", "a name in the greeting is too long")
    return frame.hello


def frames_of(id_: int, kind: str, content: bytes, timeout: float = 0.0) -> Iterator[Frame]:
    """A message as frames, made one by one as they are sent."""
    yield Frame(begin=Begin(id=id_, kind=kind, size=len(content), timeout=timeout))
    view = memoryview(content)
    for start in range(0, len(content), CHUNK):
        yield Frame(chunk=bytes(view[start : start + CHUNK]))


def incoming(
    frames: Iterable[Frame],
    limit: Callable[[Begin], int],
    wanted: Callable[[Begin], bool] = lambda begin: True,
) -> Iterator[Incoming]:
    """Whole messages from frames, until the stream ends.

    `limit` gives the largest size of a message, or raises. The content of messages that are not `wanted` is dropped.

    Raises:
        ProtocolError: a frame is unexpected or too large.
        Closed: the other side has ended the stream.
    """
    stream = iter(frames)
    for frame in stream:
        kind = frame.WhichOneof("kind")
        if kind == "close":
            raise Closed(frame.close.code)
        if kind != "begin" or len(frame.begin.kind) > LONGEST_NAME:
            raise ProtocolError("malformed", "expected the beginning of a message")
        begin, largest = frame.begin, limit(frame.begin)
        if begin.size > largest:
            raise ProtocolError(
                "too_large", f"a message of {begin.size} bytes, at most {largest} are allowed"
            )
        keep = wanted(begin)
        parts = [chunk for chunk in _chunks(stream, begin.size) if keep]
        yield Incoming(begin.id, begin.kind, b"".join(parts), begin.timeout)


def _chunks(stream: Iterator[Frame], size: int) -> Iterator[bytes]:
    while size > 0:
        frame = next(stream, None)
        if frame is None:
            raise ProtocolError("malformed", "the stream ended within a message")
        kind = frame.WhichOneof("kind")
        if kind == "close":
            raise Closed(frame.close.code)
        chunk = frame.chunk
        if len(chunk) > min(CHUNK, size):
            raise ProtocolError("too_large", "a chunk exceeds its message's size or the largest chunk")
        # Many small chunks would take far more memory than their bytes.
        if kind != "chunk" or len(chunk) < min(CHUNK, size):
            raise ProtocolError("malformed", "expected a whole chunk")
        size -= len(chunk)
        yield chunk
