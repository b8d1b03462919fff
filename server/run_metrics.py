"""A run's progress as figures for Prometheus: a subscriber of its events, and a grid that times the phases.

    metrics = RunMetrics(seen, expected=names, connected=lambda: service.connected, least=3)
    coordinate(metrics.timed(StreamGrid(service)), run, [metrics])

The coordinator's own figures alone: no quality, no loss, no norm of an update.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from flwr.app import Message
from flwr.serverapp import Grid

from ..protocol.messages import PHASES
from ..protocol.observability import Observability
from .events import Event, RoundFailed, RoundFinished, RunFinished, RunStarted
from .phases import PhasedGrid

_TOO_MANY = 3  # rounds that failed in a row


class RunMetrics:
    """`expected`: the companies by name; `connected`: those that are there; `least`: with fewer no sum is opened."""

    def __init__(
        self,
        seen: Observability,
        *,
        expected: Collection[str] = (),
        connected: Callable[[], Collection[str]] | None = None,
        least: int = 0,
    ) -> None:
        self._connected, self._least, self._failed = connected, least, 0
        self._phases, self._lock = dict.fromkeys(PHASES.values(), 0), threading.Lock()
        self._rounds = seen.gauge("coordinator_rounds", "rounds that the run has")
        self._round = seen.gauge("coordinator_round", "the last round that is over; 0 is the public model")
        self._running = seen.gauge("coordinator_running", "1 from the run's first event to its last")
        self._ended = seen.counter(
            "coordinator_rounds_ended", "rounds that are over, by how they ended", ["status"]
        )
        self._in_a_row = seen.gauge("coordinator_rounds_failed_in_a_row", "since the last one that was done")
        self._phase = seen.gauge("coordinator_phase", "1 while the phase waits for companies", ["phase"])
        self._seconds = seen.counter("coordinator_phase_seconds", "seconds spent in a phase", ["phase"])
        self._times = seen.counter("coordinator_phases", "phases that are over", ["phase"])
        self._sent = seen.counter("coordinator_sent_bytes", "bytes of records sent to companies", ["phase"])
        self._received = seen.counter("coordinator_received_bytes", "bytes of records received", ["phase"])
        self._missing = seen.counter(
            "coordinator_replies_missing", "requests without a reply in time", ["phase"]
        )
        for phase in PHASES.values():
            self._phase.labels(phase).set(0)
        there = seen.gauge("coordinator_company_connected", "1 while the company is connected", ["company"])
        if connected is not None:
            for name in expected:
                there.labels(name).set_function(_whether(connected, name))
            seen.gauge("coordinator_companies_connected", "how many").set_function(lambda: len(connected()))
        seen.gauge("coordinator_companies_expected", "how many").set(len(expected))
        seen.health = self.health

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._rounds.set(event.rounds)
            self._round.set(event.done)
            self._running.set(1)
        if isinstance(event, RoundFinished):
            self._round.set(event.round)
            if event.round:
                self._count(str(event.row.get("status", "done")))
        if isinstance(event, RoundFailed):
            self._count("begun_anew")
        if isinstance(event, RunFinished):
            self._running.set(0)

    def _count(self, status: str) -> None:
        self._ended.labels(status).inc()
        self._failed = 0 if status == "done" else self._failed + 1
        self._in_a_row.set(self._failed)

    def health(self) -> str | None:
        """What is wrong, in one word."""
        if self._failed >= _TOO_MANY:
            return "rounds_fail"
        if self._connected is not None and len(self._connected()) < self._least:
            return "companies_missing"
        return None

    def timed(self, grid: Grid) -> Grid:
        """The grid, its phases timed and their bytes counted."""
        return PhasedGrid(grid, self.phase, self.count_messages)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Groups may be in a phase at once: it lasts while any is."""
        started = time.monotonic()
        self._enter(name, 1)
        try:
            yield
        finally:
            self._enter(name, -1)
            self._seconds.labels(name).inc(time.monotonic() - started)
            self._times.labels(name).inc()

    def _enter(self, name: str, groups: int) -> None:
        with self._lock:
            self._phases[name] += groups
            self._phase.labels(name).set(float(self._phases[name] > 0))

    def count_messages(self, name: str, sent: list[Message], received: list[Message]) -> None:
        self._sent.labels(name).inc(sum(map(_size, sent)))
        self._received.labels(name).inc(sum(map(_size, received)))
        self._missing.labels(name).inc(max(0, len(sent) - len(received)))


def _whether(connected: Callable[[], Collection[str]], name: str) -> Callable[[], float]:
    return lambda: float(name in connected())


def _size(message: Message) -> int:
    """Bytes of a message's records, as Flower counts them; an error has none."""
    if not message.has_content():
        return 0
    return sum(record.count_bytes() for record in message.content.values())
