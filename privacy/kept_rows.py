"""Rows of ledgers that this process has checked: each is hashed once a process, not at every message.

A run of T rounds reads a ledger some ten times a round: with every hash computed at every reading, ledgers took a
third of a simulation of 240 rounds. What is kept counts only where the file holds the very same values again, all of
them and from its first row on; a row that was changed is as new, and so is every row after it.
"""

import threading
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

Row = TypeVar("Row")
Stored = Sequence[tuple[object, ...]]


class KeptRows(Generic[Row]):
    """At most `most` rows, those of the ledgers that were read last.

    kept = KeptRows[LedgerRow](most=1000)
    rows = kept.beginning("ledger.sqlite", stored)     # of the first len(rows) that are stored; () for none
    kept.keep("ledger.sqlite", stored, [*rows, *checked])
    """

    def __init__(self, most: int) -> None:
        self._most, self._count = most, 0
        self._kept: dict[Hashable, tuple[list[tuple[object, ...]], tuple[Row, ...]]] = {}
        self._lock = threading.Lock()

    def beginning(self, ledger: Hashable, stored: Stored) -> tuple[Row, ...]:
        """The checked rows with which `stored`, as the file has them now, begins."""
        with self._lock:
            values, rows = self._kept.get(ledger, ([], ()))
        return rows if rows and stored[: len(values)] == values else ()

    def keep(self, ledger: Hashable, stored: Stored, rows: Sequence[Row]) -> None:
        """All rows of a ledger, which were checked; too many of one ledger are not kept."""
        with self._lock:
            before = self._kept.pop(ledger, None)
            self._count -= 0 if before is None else len(before[1])
            if len(rows) > self._most:
                return
            self._kept[ledger] = (list(stored), tuple(rows))
            self._count += len(rows)
            while self._count > self._most:
                oldest = next(iter(self._kept))
                self._count -= len(self._kept.pop(oldest)[1])
