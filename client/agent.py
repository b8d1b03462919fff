"""The company's end of the data plane: it connects to the coordinator and answers the requests of the stream.

Requests are Flower messages, handled by the ClientApp: what a company checks and refuses does not depend on the
transport. One message is answered at a time. Only records and fixed codes are sent.
"""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.app.metadata import validate_message_type

from ..errors import FedblocksError, ProtocolError
from ..protocol.messages import STREAM, refusal
from ..protocol.transport.frames import Incoming
from ..protocol.transport.records import decode, encode, stamp_messages
from .dialing import Dialing
from .endpoint import Endpoint

App = Callable[[Message, Context], Message]
Log = Callable[[str], None]


class Agent(Dialing):
    """Answers with an app in this process; `run` and `wait` as in `Dialing`.

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
        log: Log = lambda line: None,
    ) -> None:
        super().__init__(endpoint, run, wait=wait, log=log)
        self._app, self._context = app, context
        stamp_messages()

    def _answer(self, message: Incoming) -> bytes:
        return answer(message, self._app, self._context, self._log)


def answer(message: Incoming, app: App, context: Context, log: Log) -> bytes:
    """The app's reply, or a refusal's code; no exception's text may leave. Flower needs `stamp_messages` before."""
    try:
        if message.kind == STREAM:
            raise ProtocolError("wrong_phase", "a stream within a stream")
        if not validate_message_type(message.kind):
            raise ProtocolError("unknown_message", "no such phase")
        request = Message(
            decode(message.content), context.node_id, message.kind, ttl=max(message.timeout, 1.0)
        )
        return encode(app(request, context).content)
    except Exception as error:
        if not isinstance(error, FedblocksError):
            log(f"data plane: {message.kind!r} failed ({type(error).__name__})")
        return encode(refusal(error))
