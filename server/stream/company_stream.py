"""One company's stream on the coordinator's side: it sends requests and accepts only their answers.

At most one request is pending. A company that has not answered gets no other request, so at most one message waits
for it; a late answer is read and dropped, and then the company takes part again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from ... import __version__
from ...errors import ProtocolError
from ...protocol.transport.frames import close, frames_of, greeted, hello, incoming
from ...protocol.transport.frames_pb2 import Begin, Frame

# The size limit of an answer grows with its request: a masked vector is no longer than the block that was sent.
_ANSWER_FACTOR, _ANSWER_LEAST = 4, 1 << 20

OnAnswer = Callable[[str, int, bytes], None]


class Link:
    """Reads and writes in two gRPC threads; the reading one calls `on_answer(company, id, content)`."""

    def __init__(self, company: str, certificate: bytes, run: str, largest: int, on_answer: OnAnswer) -> None:
        self.company = company
        self.certificate = certificate  # in PEM, as shown
        self._run = run
        self._largest = largest
        self._on_answer = on_answer
        self._outbox: queue.SimpleQueue[Iterator[Frame] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._asked: tuple[int, str, int] | None = None  # id, kind and largest answer of the pending request
        self._waiting = False
        self._ended = False

    def ask(self, id_: int, kind: str, content: bytes, timeout: float) -> bool:
        """Send a request; False if an answer is still pending, or the stream has ended."""
        with self._lock:
            if self._asked is not None or self._ended:
                return False
            limit = min(self._largest, _ANSWER_FACTOR * len(content) + _ANSWER_LEAST)
            self._asked, self._waiting = (id_, kind, limit), True
        self._outbox.put(frames_of(id_, kind, content, timeout))
        return True

    @property
    def owes(self) -> int | None:
        """The id of the pending request, if there is one."""
        with self._lock:
            return None if self._asked is None else self._asked[0]

    def give_up(self, id_: int) -> None:
        """The deadline has passed: a late answer is dropped."""
        with self._lock:
            if self._asked is not None and self._asked[0] == id_:
                self._waiting = False

    def end(self, code: str | None = None) -> None:
        """Close the stream, and send a code if one is given."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        if code is not None:
            self._outbox.put(iter([close(code)]))
        self._outbox.put(None)

    def outgoing(self) -> Iterator[Frame]:
        """Frames to send, until the end. gRPC takes a frame when the one before was sent."""
        while (frames := self._outbox.get()) is not None:
            yield from frames

    def greet(self, frames: Iterator[Frame]) -> None:
        """Read the company's greeting and answer it; ProtocolError if it is not as expected."""
        greeting = greeted(frames)
        if greeting.run not in ("", self._run):
            raise ProtocolError("wrong_run", "the company is waiting for another run")
        self._outbox.put(iter([hello(self._run, __version__)]))

    def listen(self, frames: Iterator[Frame]) -> None:
        """Read answers until the stream ends; raises ProtocolError, Closed or what gRPC raises."""
        for answer in incoming(frames, self._limit, self._wanted):
            with self._lock:
                waiting, self._asked = self._waiting, None
            if waiting:
                self._on_answer(self.company, answer.id, answer.content)

    def _limit(self, begin: Begin) -> int:
        with self._lock:
            if self._asked is None or self._asked[:2] != (begin.id, begin.kind):
                raise ProtocolError("malformed", "an answer to no pending request")
            return self._asked[2]

    def _wanted(self, begin: Begin) -> bool:
        with self._lock:
            return self._waiting
