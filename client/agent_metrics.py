"""How a company's agent stands, as figures for Prometheus: what it answered and refused, by code, and since when.

    metrics = AgentMetrics(seen, connected=lambda: agent.connected_since is not None)
    agent = Agent(endpoint, metrics.counted(app), context)

Nothing of the data shows: no loss, no size, no epsilon. A message counts once the app has answered it, which is after
the policy's `answer_seconds` where these are set, and the time of the last one is that of its arrival: so no figure
tells how long a training took.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import FedblocksError
from ..protocol.observability import Observability

if TYPE_CHECKING:
    from flwr.app import Context, Message

    App = Callable[[Message, Context], Message]

# What a coordinator may call a message is without end; so many time series are not.
_KINDS = ("join", "keys", "train", "confirm", "unmask")
_OTHER = "other"


class AgentMetrics:
    """`connected`: whether the coordinator is there."""

    def __init__(
        self,
        seen: Observability,
        *,
        connected: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._last, self._connected = clock, math.nan, connected
        kinds = ["message"]
        self._answered = seen.counter("agent_messages_answered", "messages answered", kinds)
        self._refused = seen.counter("agent_messages_refused", "messages refused", [*kinds, "code"])
        self._trainings = seen.counter("agent_trainings", "trainings whose masked update was sent")
        for kind in _KINDS:
            self._answered.labels(kind)
        seen.gauge("agent_connected", "1 while connected to the coordinator").set_function(
            lambda: float(connected())
        )
        seen.gauge(
            "agent_seconds_since_contact",
            "since the last message of a coordinator came; NaN before the first",
        ).set_function(lambda: self._clock() - self._last)
        seen.health = self.health

    def health(self) -> str | None:
        """What is wrong, in one word."""
        return None if self._connected() else "not_connected"

    def came(self) -> None:
        """A message has come."""
        self._last = self._clock()

    def answered(self, kind: str, code: str | None) -> None:
        """It was answered; `kind` and `code` as `observed` tells them."""
        if code is not None:
            self._refused.labels(kind, code).inc()
        else:
            self._answered.labels(kind).inc()
            self._trainings.inc(kind == "train")

    def counted(self, app: App) -> App:
        """The app, its answers counted."""
        counting = observed(app, self.answered)

        def answer(message: Message, context: Context) -> Message:
            self.came()
            return counting(message, context)

        return answer


def observed(app: App, told: Callable[[str, str | None], None]) -> App:
    """The app; of each answer `told` gets the message's kind and the code of a refusal, none where it is none."""
    from ..protocol.messages import CONFIRM, JOIN, KEYS, TRAIN, UNMASK, refused

    kinds = dict(zip((JOIN, KEYS, TRAIN, CONFIRM, UNMASK), _KINDS, strict=True))

    def answer(message: Message, context: Context) -> Message:
        kind = kinds.get(message.metadata.message_type, _OTHER)
        try:
            reply = app(message, context)
            code = refused(reply.content) if reply.has_content() else "failed"
        except Exception as error:
            told(kind, error.code if isinstance(error, FedblocksError) else "internal")
            raise
        told(kind, code)
        return reply

    return answer
