"""One company's stream, as the coordinator holds it: a request goes down, and only its answer comes up.

At most one request is out. A company that has not answered one is asked nothing else, so that what waits for
it is never more than one message; its late answer is read past, and then it takes part again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from ... import __version__
from ...errors import ProtocolError
from ...protocol.transport.frames import close, frames_of, greeted, hello, incoming
from ...protocol.transport.frames_pb2 import Begin, Frame

# An answer grows with its question: a masked vector is no longer than the block it was trained from.
_ANSWER_FACTOR, _ANSWER_LEAST = 4, 1 << 20

OnAnswer = Callable[[str, int, bytes], None]


class Link:
    """Reads and writes in two threads of gRPC's; `on_answer(company, id, content)` comes from the reading one."""

    def __init__(self, company: str, run: str, largest: int, on_answer: OnAnswer) -> None:
        self.company = company
        self._run = run
        self._largest = largest
        self._on_answer = on_answer
        self._outbox: queue.SimpleQueue[Iterator[Frame] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._asked: tuple[int, str, int] | None = None  # id, kind and largest answer of what is out
        self._waiting = False
        self._ended = False

    def ask(self, id_: int, kind: str, content: bytes, timeout: float) -> bool:
        """Send a request; False if the company still owes an answer, or is gone."""
        with self._lock:
            if self._asked is not None or self._ended:
                return False
            limit = min(self._largest, _ANSWER_FACTOR * len(content) + _ANSWER_LEAST)
            self._asked, self._waiting = (id_, kind, limit), True
        self._outbox.put(frames_of(id_, kind, content, timeout))
        return True

    @property
    def owes(self) -> int | None:
        """The id of the request that has not been answered."""
        with self._lock:
            return None if self._asked is None else self._asked[0]

    def give_up(self, id_: int) -> None:
        """The deadline has passed: an answer that still comes is not kept."""
        with self._lock:
            if self._asked is not None and self._asked[0] == id_:
                self._waiting = False

    def end(self, code: str | None = None) -> None:
        """Close the stream, with a code if there is somebody to tell."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        if code is not None:
            self._outbox.put(iter([close(code)]))
        self._outbox.put(None)

    def outgoing(self) -> Iterator[Frame]:
        """What goes down, until the end. gRPC takes a frame when the one before has left."""
        while (frames := self._outbox.get()) is not None:
            yield from frames

    def greet(self, frames: Iterator[Frame]) -> None:
        """Hear the company's greeting and answer it."""
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
                raise ProtocolError("malformed", "an answer to nothing that was asked")
            return self._asked[2]

    def _wanted(self, begin: Begin) -> bool:
        with self._lock:
            return self._waiting
