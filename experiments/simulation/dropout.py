"""Injected failures: a Grid that loses the replies of some companies.

The company has done its work, and charged its ledger, when its reply is lost: the dearest kind of failure.
Which ones are lost follows from seed, round and company alone, so an interrupted run resumes alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from ...protocol.messages import CONFIRM, KEYS, TRAIN, UNMASK
from ...server.grid import GridOver
from ...settings import DropoutSettings

PHASES = {"keys": KEYS, "train": TRAIN, "confirm": CONFIRM, "unmask": UNMASK}


class Losses:
    """Which replies are lost: with probability `dropout.rate` in `dropout.phase`."""

    def __init__(self, dropout: DropoutSettings, seed: int) -> None:
        self._dropout = dropout
        self._seed = seed

    def is_lost(self, phase: str, group: str, node: int) -> bool:
        """Whether this node's reply of this round (`group`) is lost; same answer every time."""
        if phase != PHASES[self._dropout.phase]:
            return False
        digest = hashlib.sha256(f"{self._seed}|{group}|{node}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64 < self._dropout.rate


class LossyGrid(GridOver):
    """Passes everything to `grid`, but loses these replies."""

    def __init__(self, grid: Grid, dropout: DropoutSettings, seed: int) -> None:
        super().__init__(grid)
        self._losses = Losses(dropout, seed)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = self._grid.send_and_receive(messages, timeout=timeout)
        return [
            reply
            for reply in replies
            if not self._losses.is_lost(
                reply.metadata.message_type, reply.metadata.group_id, reply.metadata.src_node_id
            )
        ]
