"""A record of steps that a company takes only once, whatever state it is started from.

A run's state is kept by Flower (`Context`): each message is answered in a separate process, which reads the state and
writes a new one. Flower 1.41's SuperNode starts a message after the one before is answered, but this is not
guaranteed for it, its next version, or another runtime. If two messages start from one state, a company could sign
two sets of survivors and answer for both, which reveals both seed and key shares of one company. A row here, in the
company's own home, outlives every such state.

It is also the second place that keeps the ledger's length and head (`privacy.ledger_store.Witness`), and those of the
record of decisions (`decisions`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sized
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import LedgerError, ProtocolError
from ..protocol import private_file

STEPS_FILE = "steps.sqlite"
SESSION_STEPS = ("begun", "trained", "confirmed", "answered")
WAIT_SECONDS = 30.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS steps (step TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS counts (step TEXT PRIMARY KEY, times INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS ledger (one INTEGER PRIMARY KEY CHECK (one = 1), rows INTEGER, head TEXT) STRICT;
"""
_LOG_TABLE = """
CREATE TABLE IF NOT EXISTS log (
    one INTEGER PRIMARY KEY CHECK (one = 1), lines INTEGER NOT NULL, bytes INTEGER NOT NULL, head TEXT NOT NULL,
    rows INTEGER NOT NULL, policy TEXT NOT NULL
) STRICT
"""
_LOG = "SELECT lines, bytes, head, rows, policy FROM log"
_SEEN = "SELECT rows, head FROM ledger WHERE rows >= 0 AND head IS NOT NULL"
_LOST = b"lost"  # differs from every cohort, which is a JSON list


@dataclass
class LogHead:
    """What is kept of the record of decisions: its lines and bytes, the last line's hash, how many of the ledger's
    rows it tells of, and the digest of the policy that it saw last."""

    lines: int = 0
    bytes: int = 0
    head: str = ""
    rows: int = 0
    policy: str = ""

    def follow(self, line: Sized, head: str) -> None:
        """One more line."""
        self.lines, self.bytes, self.head = self.lines + 1, self.bytes + len(line), head


@dataclass(frozen=True)
class Steps:
    """The steps that have been taken, in a SQLite file of the company; each is synced to disk.

    `durable` false, for an invented company: a step survives the process, but not the machine.

    Raises:
        LedgerError: from every method, if the file is missing or damaged.
    """

    path: Path
    durable: bool = True

    def begin(self, rows: int, head: str, runs: Iterable[str] = ()) -> None:
        """Set the ledger's length and head; creates the file if there is none.

        `runs` are those in the ledger. If the ledger has rows that this file has not seen, the file is new or an
        older copy, and steps of any of these runs may be lost: their secure sums cannot continue.
        """
        with suppress(FileExistsError):
            private_file.create(self.path, b"")
        with self._file(_SCHEMA) as file:
            file.execute("BEGIN IMMEDIATE")
            before = file.execute(_SEEN).fetchone()
            if rows > (0 if before is None else before[0]):
                lost = [(_key(("cohort", run.encode())), _LOST) for run in runs]
                file.executemany("INSERT OR REPLACE INTO steps VALUES (?, ?)", lost)
            file.execute("INSERT OR REPLACE INTO ledger VALUES (1, ?, ?)", (rows, head))
            file.execute("COMMIT")

    def seen(self) -> tuple[int, str]:
        """The ledger's number of rows and head, as last seen."""
        with self._file() as file:
            found: tuple[int, str] = file.execute(_SEEN).fetchone()
        return found

    def saw(self, rows: int, head: str) -> None:
        """Record the ledger's length and head, unless another process has seen a longer one."""
        with self._file() as file:
            file.execute("UPDATE ledger SET rows = ?, head = ? WHERE rows < ?", (rows, head, rows))

    def take(self, *step: bytes | str, value: bytes = b"", code: str = "replay") -> None:
        """Record a step. It may be repeated only with the same non-empty `value`, else ProtocolError(code)."""
        with self._file() as file:
            _take(file, _key(step), value, code)

    def take_in_session(
        self, step: str, channel: bytes, session: bytes, *, value: bytes = b"", code: str = "replay"
    ) -> None:
        """As `take`, of a session under a channel key; ProtocolError("replay") once the key's run is over."""
        with self._file() as file:
            file.execute("BEGIN IMMEDIATE")
            over = file.execute("SELECT 1 FROM steps WHERE step = ?", (_key(("over", channel)),)).fetchone()
            if over:
                raise ProtocolError("replay", "the run that was joined with this channel key is over")
            _take(file, _key((step, channel, session)), value, code)
            file.execute("COMMIT")

    def forget_sessions(self, channel: bytes) -> None:
        """A run is over: its sessions' steps become one, that no session of its channel key goes on."""
        with self._file() as file:
            file.execute("BEGIN IMMEDIATE")
            file.execute("INSERT OR IGNORE INTO steps VALUES (?, ?)", (_key(("over", channel)), b""))
            for step in SESSION_STEPS:
                first, end = _key((step, channel)) + "/", _key((step, channel)) + "0"  # "0" follows "/"
                file.execute("DELETE FROM steps WHERE step >= ? AND step < ?", (first, end))
            file.execute("COMMIT")

    def count(self, *step: bytes | str, times: int, most: int) -> None:
        """Count a step `times` more; ProtocolError("too_many") if that is more than `most` in total."""
        with self._file() as file:
            _count(file, _key(step), times, most)

    def check_count(self, *step: bytes | str, times: int, most: int) -> None:
        """Raises what `count` would raise, and counts nothing."""
        key = _key(step)
        with self._file() as file:
            found = file.execute("SELECT times FROM counts WHERE step = ?", (key,)).fetchone()
        if times + (found[0] if found else 0) > most:
            raise _too_many(key, most)

    def count_new(self, *step: bytes | str, value: bytes, most: int) -> None:
        """As `count`, once, unless the step was counted with this `value` before."""
        key = _key(step)
        with self._file() as file:
            file.execute("BEGIN IMMEDIATE")
            new = "INSERT OR IGNORE INTO steps VALUES (?, ?)"
            if file.execute(new, (f"{key}/{value.hex()}", b"")).rowcount == 1:
                _count(file, key, 1, most)
            file.execute("COMMIT")

    @contextmanager
    def log_head(self) -> Iterator[LogHead]:
        """What is kept of the record of decisions, to be changed; other processes wait meanwhile."""
        with self._file() as file:
            file.execute("BEGIN IMMEDIATE")
            try:
                file.execute(_LOG_TABLE)  # steps that an older fedblocks recorded have none
                kept = LogHead(*(file.execute(_LOG).fetchone() or ()))
                yield kept
            except BaseException:
                file.execute("ROLLBACK")
                raise
            values = (kept.lines, kept.bytes, kept.head, kept.rows, kept.policy)
            file.execute("INSERT OR REPLACE INTO log VALUES (1, ?, ?, ?, ?, ?)", values)
            file.execute("COMMIT")

    def seen_log(self) -> LogHead:
        """What is kept of the record of decisions."""
        with self._file() as file:
            file.execute(_LOG_TABLE)
            return LogHead(*(file.execute(_LOG).fetchone() or ()))

    @contextmanager
    def _file(self, schema: str | None = None) -> Iterator[sqlite3.Connection]:
        """The open file, which is never created here: a lost file must not be taken for an empty one."""
        if not self.path.is_file():
            raise LedgerError(
                f"{self.path} is missing: it records which steps were taken and the ledger's length. Restore "
                f"it from a backup; if it is lost, see `fedblocks ledger accept {self.path.parent}`"
            )
        try:
            with closing(sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)) as file:
                file.execute(f"PRAGMA synchronous = {'EXTRA' if self.durable else 'OFF'}")
                if schema is not None:
                    file.executescript(schema)
                elif file.execute(_SEEN).fetchone() is None:
                    raise sqlite3.DatabaseError("says nothing of the ledger")
                yield file
        except sqlite3.Error as error:
            raise LedgerError(
                f"{self.path}: {error}: if it is damaged, restore it from a backup; if an older fedblocks wrote it, "
                f"see `fedblocks ledger accept {self.path.parent}`"
            ) from error


def _take(file: sqlite3.Connection, key: str, value: bytes, code: str) -> None:
    if file.execute("INSERT OR IGNORE INTO steps VALUES (?, ?)", (key, value)).rowcount == 1:
        return
    (before,) = file.execute("SELECT value FROM steps WHERE step = ?", (key,)).fetchone()
    if not value or value != before:
        raise ProtocolError(code, f"{key}: this company has taken this step before")


def _count(file: sqlite3.Connection, key: str, times: int, most: int) -> None:
    file.execute("INSERT OR IGNORE INTO counts VALUES (?, 0)", (key,))
    more = "UPDATE counts SET times = times + ? WHERE step = ? AND times + ? <= ?"
    if file.execute(more, (times, key, times, most)).rowcount == 0:
        raise _too_many(key, most)


def _too_many(key: str, most: int) -> ProtocolError:
    return ProtocolError("too_many", f"{key}: this company takes this step at most {most} times")


def _key(step: tuple[bytes | str, ...]) -> str:
    return "/".join(part if isinstance(part, str) else part.hex() for part in step)
