"""What a company does once and never again, whatever state it is started from.

A run's state travels with its messages (`Context`): each message is answered in a process of its own, which starts
from the state that it finds and leaves its own. Flower 1.41's SuperNode takes up a message when the one before is
answered, but nothing promises that of it, of its next version, or of another runtime with the same app. Where two
messages start from one state, a company signs two sets of survivors and answers for both, and seed and key shares of
one company meet. A row here, in the company's own home, outlives every such state.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import ProtocolError

WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Steps:
    """The steps that have been taken, in a SQLite file of the company's; forced out to the disk, each of them."""

    path: Path

    def take(self, *step: bytes | str, value: bytes = b"", code: str = "replay") -> None:
        """Take a step for the first time; later only if `value` is there and the same, else ProtocolError(code)."""
        key = _key(step)
        with self._file() as file:
            if file.execute("INSERT OR IGNORE INTO steps VALUES (?, ?)", (key, value)).rowcount == 1:
                return
            (before,) = file.execute("SELECT value FROM steps WHERE step = ?", (key,)).fetchone()
        if not value or value != before:
            raise ProtocolError(code, f"{key}: this company has taken this step before")

    def count(self, *step: bytes | str, times: int, most: int) -> None:
        """Take a step `times` more; ProtocolError("too_many") if that would be more than `most` in all."""
        key = _key(step)
        with self._file() as file:
            file.execute("INSERT OR IGNORE INTO counts VALUES (?, 0)", (key,))
            more = "UPDATE counts SET times = times + ? WHERE step = ? AND times + ? <= ?"
            if file.execute(more, (times, key, times, most)).rowcount == 0:
                raise ProtocolError("too_many", f"{key}: this company takes this step {most} times at most")

    @contextmanager
    def _file(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)) as file:
            file.execute("PRAGMA synchronous = EXTRA")
            file.execute(
                "CREATE TABLE IF NOT EXISTS steps (step TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT"
            )
            file.execute(
                "CREATE TABLE IF NOT EXISTS counts (step TEXT PRIMARY KEY, times INTEGER NOT NULL) STRICT"
            )
            self.path.chmod(0o600)
            yield file


def _key(step: tuple[bytes | str, ...]) -> str:
    return "/".join(part if isinstance(part, str) else part.hex() for part in step)
