"""The company's end of the data plane: it connects to the coordinator and answers the requests of the stream.

Requests are Flower messages, handled by the ClientApp: what a company checks and refuses does not depend on the
transport. One message is answered at a time. Only records and fixed codes are sent.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator

import grpc
from flwr.app import Context, Message
from flwr.app.metadata import validate_message_type

from .. import __version__
from ..errors import FedblocksError, ProtocolError
from ..protocol.messages import STREAM, refusal
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
from ..protocol.transport.records import decode, encode, stamp_messages
from .endpoint import Endpoint

App = Callable[[Message, Context], Message]

_FIRST_DELAY, _LONGEST_DELAY = 0.2, 15.0


class Agent:
    """Answers one coordinator's requests until the run is over; without `run`, of any run.

    `wait`: seconds in which to connect for the first time, if shorter than the company's own patience.

    agent = Agent(Endpoint.of(home), app, context, run="digits-1")
    code = agent.serve()      # "done", or why it stopped
    """

    def __init__(
        self,
        endpoint: Endpoint,
        app: App,
        context: Context,
        run: str = "",
        *,
        wait: float | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._endpoint = endpoint
        self._app = app
        self._context = context
        self._run = run
        self._patience = min(endpoint.settings.patience, wait or endpoint.settings.patience)
        self._log = log
        self._stopped = threading.Event()
        self._call: grpc.Call | None = None
        self._heard = 0.0
        self.answered = 0
        self.connected = False
        stamp_messages()

    def serve(self) -> str:
        """Connect, answer, and connect again when the stream breaks; returns the code that ended it."""
        delay = _FIRST_DELAY
        self._heard = time.monotonic()
        while not self._stopped.is_set():
            before = self.answered
            code = self._exchange()
            self._log(f"data plane: {code}")
            if code in FINAL:
                return code
            if self.answered > before:
                delay = _FIRST_DELAY
            if time.monotonic() - self._heard > self._patience:
                return "unreachable"
            # When a coordinator restarts, all companies lose it at once; they should not all connect at once again.
            self._stopped.wait(delay * random.uniform(0.5, 1.5))
            delay = min(2 * delay, _LONGEST_DELAY)
        return "stopped"

    def stop(self) -> None:
        """Stop, from another thread; the current message is still handled but its answer is not sent."""
        self._stopped.set()
        if self._call is not None:
            self._call.cancel()

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
            greeted(call)
            connected = self.connected = True
            self._patience = self._endpoint.settings.patience
            for message in incoming(call, self._limit):
                outgoing.put(frames_of(message.id, message.kind, self._answer(message)))
                self.answered += 1
            return "unreachable"
        except Closed as end:
            return end.code
        except ProtocolError as error:
            return error.code
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.details() in CODES:  # refused without a frame
                return str(error.details())
            status = error.code() if isinstance(error, grpc.Call) else None
            return f"unreachable ({status.name.lower() if status else 'no status'})"
        finally:
            self.connected = False
            if connected:
                self._heard = time.monotonic()
            outgoing.put(None)
            self._call = None
            channel.close()

    def _limit(self, begin: Begin) -> int:
        return self._endpoint.settings.largest_message_mb << 20

    def _answer(self, message: Incoming) -> bytes:
        """The handler's reply, or a refusal's code; no exception's text may leave."""
        try:
            if message.kind == STREAM:
                raise ProtocolError("wrong_phase", "a stream within a stream")
            if not validate_message_type(message.kind):
                raise ProtocolError("unknown_message", "no such phase")
            request = Message(
                decode(message.content), self._context.node_id, message.kind, ttl=max(message.timeout, 1.0)
            )
            return encode(self._app(request, self._context).content)
        except Exception as error:
            if not isinstance(error, FedblocksError):
                self._log(f"data plane: {message.kind!r} failed ({type(error).__name__})")
            return encode(refusal(error))


def _drained(outgoing: queue.SimpleQueue[Iterator[Frame] | None]) -> Iterator[Frame]:
    while (frames := outgoing.get()) is not None:
        yield from frames
