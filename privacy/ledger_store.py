"""The file of a company's ledger: rows that can be added and read, never changed.

Purpose: storage that survives crashes and shows damage; `ledger.py` says what rows mean for epsilon, `ledger_file.py`
reads them. One SQLite file of mode 0600, in write-ahead mode with synchronous=FULL (a committed
row survives power loss: https://sqlite.org/pragma.html#pragma_synchronous), written under BEGIN IMMEDIATE (one
writer at a time, over all processes).

A file can be deleted, truncated or replaced by an older copy, which its hash chain does not show. So a `Witness`
elsewhere keeps the ledger's length and head. A row is committed first and then recorded as seen, and only then may
its release be made: a crash in between leaves a ledger that is longer than was seen, which does no harm and is
accepted. A ledger that does not begin with what was seen is refused, and so is one that is longer by more rows than
crashes explain: then the witness was replaced by an older copy.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from ..atomic_file import OWNER_ONLY, creating
from ..errors import LedgerError
from .ledger_file import (
    APPLICATION_ID,
    EVENT_COLUMN,
    MOST_UNSEEN,
    SCHEMA_VERSION,
    WAIT_SECONDS,
    LedgerCopy,
    LedgerHeader,
    LedgerRow,
    check_file,
    check_integrity,
    check_seen,
    digest,
    mendable,
    read_header,
    read_rows,
)

_SCHEMA = f"""
BEGIN;
CREATE TABLE ledger (
    company TEXT NOT NULL, delta REAL NOT NULL, adjacency TEXT NOT NULL, composition TEXT NOT NULL, renyi_order REAL
) STRICT;
CREATE TABLE releases (
    seq INTEGER PRIMARY KEY, company TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL,
    block TEXT NOT NULL, release_id TEXT NOT NULL UNIQUE, event TEXT NOT NULL, unit TEXT NOT NULL,
    adjacency TEXT NOT NULL,
    delta REAL NOT NULL, epsilon_before REAL NOT NULL, epsilon_after REAL NOT NULL, time REAL NOT NULL,
    planned INTEGER NOT NULL, account TEXT NOT NULL, hash TEXT NOT NULL
) STRICT;
CREATE TRIGGER no_update BEFORE UPDATE ON releases BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON releases BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""


class Witness(Protocol):
    """A second place that keeps a ledger's length and head."""

    def seen(self) -> tuple[int, str]:
        """(rows, head) of the longest ledger that was seen."""

    def saw(self, rows: int, head: str) -> None:
        """Record these, unless more rows were seen already; on disk once this returns."""


class LedgerStore:
    """Append-only rows of one (company, delta, adjacency, composition)."""

    def __init__(
        self, path: Path, wanted: LedgerHeader, witness: Witness | None = None, *, durable: bool = True
    ) -> None:
        """Open the file, or create it as `wanted`. The order of a composition is that of the file.

        `durable` false, for an invented company: a committed row survives the process, but not the machine.

        Raises:
            LedgerError: damaged, not as `wanted`, or not as the witness has seen it; missing, if there is a witness.
        """
        self.path = path
        self._witness = witness
        with mendable(path):
            if not os.path.lexists(path):
                if witness is not None:
                    raise LedgerError(
                        f"ledger {path} is missing: restore it from a backup; a first one, or one in place of what "
                        f"is lost, is made with `fedblocks ledger create {path.parent}`"
                    )
                _create(path, wanted, durable)
            check_file(path)
            # SQLite gives its side files the mode of the main file.
            path.chmod(0o600)
            self._connection = _connect(path, durable)
        try:
            with mendable(path):
                self.header = read_header(self._connection, path)
            found = self.header
            # Ledgers from before compositions existed have the one rule that holds for them.
            rule = wanted.composition if found.pinned else found.composition
            if found != replace(wanted, composition=rule, order=found.order, version=found.version):
                raise LedgerError(
                    f"ledger {path} belongs to {found.company!r} at delta={found.delta}, to {found.adjacency}, by "
                    f"composition {found.composition!r}, not to {wanted.company!r} at delta={wanted.delta}, to "
                    f"{wanted.adjacency}, by {wanted.composition!r}: all four are fixed when a ledger is created; "
                    "epsilons of another delta, adjacency or composition cannot be compared"
                )
            self.rows()
        except BaseException:
            self.close()
            raise

    def rows(self) -> list[LedgerRow]:
        """All rows in order; LedgerError names the first one that does not fit the chain or what was seen of it."""
        # The witness is read first: rows that others add meanwhile make the ledger longer, never shorter.
        seen = None if self._witness is None else self._witness.seen()
        rows = read_rows(self._connection, self.path, self.header)
        if self._witness is not None and seen is not None:
            if len(rows) - seen[0] > MOST_UNSEEN and self._witness.seen() != seen:
                return self.rows()  # others are adding rows
            check_seen(LedgerCopy(self.path, self.header, tuple(rows)), *seen)
        return rows

    def append(self, row: LedgerRow, rows: Sequence[LedgerRow]) -> None:
        """Add `row` after `rows`; `seq` and `hash` are set here. Call within the `transaction()` that read those."""
        row = replace(row, seq=len(rows) + 1)
        values = [getattr(row, name) for name in self.header.columns]
        values[EVENT_COLUMN] = row.event.to_json()
        places = ", ".join("?" * (len(values) + 1))
        with mendable(self.path):
            insert = f"INSERT INTO releases VALUES ({places})"
            self._connection.execute(insert, (*values, digest(self.head(rows), values)))

    def head(self, rows: Sequence[LedgerRow] | None = None) -> str:
        """The hash of all rows so far."""
        rows = self.rows() if rows is None else rows
        return LedgerCopy(self.path, self.header, tuple(rows)).head

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and on disk once left; other processes wait."""
        with mendable(self.path):
            # IMMEDIATE takes the write lock before reading: no other row can slip in between sum and insert.
            self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            rows = self.rows()
            with mendable(self.path):
                self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        # Also if no row was added: a crash may have come between an earlier row and its witness.
        if self._witness is not None:
            self._witness.saw(len(rows), self.head(rows))
        # On disk already, in the write-ahead log; moved to the main file so that a copy of that alone is complete.
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def check_integrity(self) -> None:
        """SQLite's own check of the whole file."""
        check_integrity(self._connection, self.path)

    def close(self) -> None:
        self._connection.close()


def _create(path: Path, header: LedgerHeader, durable: bool) -> None:
    """Build the ledger under another name, then link it: an empty file at `path` is always damage."""
    if os.path.lexists(f"{path}-wal"):
        raise LedgerError(
            f"ledger {path} is gone but its write-ahead log {path}-wal is there and may hold charges: "
            "restore both from a backup"
        )
    values = (header.company, header.delta, header.adjacency, header.composition, header.order)
    # If another process is first, its ledger is used.
    with suppress(FileExistsError), creating(path, mode=OWNER_ONLY) as draft:
        try:
            connection = _connect(draft, durable)
            try:
                connection.executescript(_SCHEMA)
                connection.execute("INSERT INTO ledger VALUES (?, ?, ?, ?, ?)", values)
            finally:
                connection.close()
        finally:
            for rest in (Path(f"{draft}-wal"), Path(f"{draft}-shm")):
                rest.unlink(missing_ok=True)


def _connect(path: Path, durable: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, isolation_level=None, timeout=WAIT_SECONDS
    )
    try:
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise LedgerError(f"ledger {path} lies where SQLite cannot keep its log: use a local disk")
    except BaseException:
        connection.close()
        raise
    return connection
