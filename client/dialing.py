"""The connection of a company's agent to the coordinator: it dials, takes messages, sends answers, and dials again.

One message is answered at a time, by whoever derives from `Dialing`. PyTorch is not imported here, so that an agent
that only waits is small.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime

import grpc

from .. import __version__
from ..errors import InputError, ProtocolError
from ..protocol.transport.certificates import COORDINATOR
from ..protocol.transport.frames import (
    CODES,
    FINAL,
    OPTIONS,
    Closed,
    Incoming,
    frames_of,
    greeted,
    hello,
    incoming,
)
from ..protocol.transport.frames_pb2 import Begin, Frame
from ..protocol.transport.frames_pb2_grpc import DataPlaneStub
from .endpoint import Endpoint

_FIRST_DELAY, _LONGEST_DELAY = 0.2, 15.0
# Seconds without a coordinator after which a run that Flower has started is over, where the company has no opinion.
_PATIENCE = 120.0


class Dialing(ABC):
    """Answers one coordinator's requests until the run is over; without `run`, of any run.

    `wait`: for a run that Flower has started, seconds in which to connect for the first time, if shorter than the
    company's own patience, which is then never without end: Flower starts such a run again itself.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        run: str = "",
        *,
        wait: float | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._endpoint = endpoint
        self._run = run
        self._later = endpoint.settings.patience if wait is None else endpoint.settings.patience or _PATIENCE
        self._patience = self._later if wait is None else min(self._later or wait, wait)
        self._final = FINAL if wait is None else FINAL | {"later"}
        self._log = log
        self._stopped = threading.Event()
        self._call: grpc.Call | None = None
        self._heard = 0.0
        self._warned: date | None = None
        self.served = ""  # the coordinator's run, by its greeting
        self.answered = 0
        self.connected_since: str | None = None
        self.last_message: str | None = None  # its kind, and when it was answered
        self.fault: str | None = None  # why the last connection failed, where that is known

    def serve(self) -> str:
        """Connect, answer, and connect again when the stream breaks; returns the code that ended it."""
        delay, told = _FIRST_DELAY, ("", -1)
        self._heard = time.monotonic()
        while not self._stopped.is_set():
            before, fault = self.answered, self.fault
            self._endpoint = self._endpoint.current()
            self._warn()
            code = self._exchange()
            if (code, self.answered) != told:  # a coordinator that is away for days must not fill the log
                self._log(f"data plane: {code}")
                told = (code, self.answered)
            if code == "unknown_certificate":
                self.fault = (
                    "the coordinator does not pin this company's certificate: revoked or replaced there"
                )
            if self.fault not in (None, fault):
                self._log(f"data plane: {self.fault}")
            if code in self._final:
                return code
            if self.answered > before:
                delay = _FIRST_DELAY
            if self._patience is not None and time.monotonic() - self._heard > self._patience:
                return "unreachable"
            # When a coordinator restarts, all companies lose it at once; they should not all connect at once again.
            self._stopped.wait(delay * random.uniform(0.5, 1.5))
            delay = min(2 * delay, _LONGEST_DELAY)
        return "stopped"

    @property
    def connected(self) -> bool:
        return self.connected_since is not None

    def stop(self) -> None:
        """Stop, from another thread; the current message is still handled but its answer is not sent."""
        self._stopped.set()
        if self._call is not None:
            self._call.cancel()

    def _warn(self) -> None:
        """Say once a day what ends soon."""
        today = datetime.now(UTC).date()
        if self._warned != today:
            self._warned = today
            try:
                notices = self._endpoint.notices()
            except InputError as error:  # of a file that was damaged, or is being replaced
                self._log(f"warning: {error}")
                return
            for notice in notices:
                self._log(f"warning: {notice}")

    def _exchange(self) -> str:
        """One stream, from greeting to end."""
        outgoing: queue.SimpleQueue[Iterator[Frame] | None] = queue.SimpleQueue()
        outgoing.put(iter([hello(self._run, __version__)]))
        options = [*OPTIONS, ("grpc.ssl_target_name_override", COORDINATOR)]
        credentials = self._endpoint.own.channel_credentials(self._endpoint.coordinator)
        channel = grpc.secure_channel(self._endpoint.settings.address, credentials, options)
        connected = False
        try:
            # gRPC reads `_drained` in another thread, until the call ends.
            call = DataPlaneStub(channel).Exchange(_drained(outgoing))
            self._call = call
            if self._stopped.is_set():
                return "stopped"
            self.served = greeted(call).run
            connected, self._patience = True, self._later
            self.fault, self.connected_since = None, _now()
            for message in incoming(call, self._limit):
                outgoing.put(frames_of(message.id, message.kind, self._answer(message)))
                self.answered += 1
                self.last_message = f"{message.kind} at {_now()}"
            return "unreachable"
        except Closed as end:
            return end.code
        except ProtocolError as error:
            return error.code
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.details() in CODES:  # refused without a frame
                return str(error.details())
            status = error.code() if isinstance(error, grpc.Call) else None
            if not connected:
                self.fault = self._endpoint.fault()
            return f"unreachable ({status.name.lower() if status else 'no status'})"
        finally:
            if connected:
                self._heard = time.monotonic()
            self.connected_since = None
            outgoing.put(None)
            self._call = None
            channel.close()

    def _limit(self, begin: Begin) -> int:
        return self._endpoint.settings.largest_message_mb << 20

    @abstractmethod
    def _answer(self, message: Incoming) -> bytes:
        """The content of the reply. Raises: ProtocolError where this connection cannot answer; it then ends."""


def _drained(outgoing: queue.SimpleQueue[Iterator[Frame] | None]) -> Iterator[Frame]:
    while (frames := outgoing.get()) is not None:
        yield from frames


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
