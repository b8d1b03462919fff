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

from flwr.app import Context, Message

from ..errors import FedblocksError
from ..protocol.messages import CONFIRM, JOIN, KEYS, TRAIN, UNMASK, refused
from ..protocol.observability import Observability

App = Callable[[Message, Context], Message]

# What a coordinator may call a message is without end; so many time series are not.
_KINDS = {JOIN: "join", KEYS: "keys", TRAIN: "train", CONFIRM: "confirm", UNMASK: "unmask"}
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
        for kind in _KINDS.values():
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

    def counted(self, app: App) -> App:
        """The app, its answers counted."""

        def answer(message: Message, context: Context) -> Message:
            self._last = self._clock()
            kind = _KINDS.get(message.metadata.message_type, _OTHER)
            try:
                reply = app(message, context)
                code = refused(reply.content) if reply.has_content() else "failed"
            except Exception as error:
                self._refused.labels(
                    kind, error.code if isinstance(error, FedblocksError) else "internal"
                ).inc()
                raise
            if code is not None:
                self._refused.labels(kind, code).inc()
            else:
                self._answered.labels(kind).inc()
                self._trainings.inc(kind == "train")
            return reply

        return answer
