"""Which phase of a round waits for companies, told by what is sent to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from flwr.app import Message
from flwr.serverapp import Grid

from ..protocol.messages import PHASES
from .grid import GridOver

During = Callable[[str], AbstractContextManager[None]]
Ended = Callable[[str, list[Message], list[Message]], None]


class PhasedGrid(GridOver):
    """Passes everything to `grid`, whose replies it gathers: a phase is over when all are there, or time is up.

    `during(phase)` is entered meanwhile, by several groups at once; `ended(phase, sent, received)` is called then.
    """

    def __init__(self, grid: Grid, during: During, ended: Ended = lambda phase, sent, received: None) -> None:
        super().__init__(grid)
        self._during, self._ended = during, ended

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        sent = list(messages)
        phase = PHASES.get(sent[0].metadata.message_type) if sent else None
        if phase is None:
            return self._grid.send_and_receive(sent, timeout=timeout)
        with self._during(phase):
            received = list(self._grid.send_and_receive(sent, timeout=timeout))
        self._ended(phase, sent, received)
        return received
