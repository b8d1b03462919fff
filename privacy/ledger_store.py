"""The file under a company's ledger: rows that can be added and read, never changed.

Purpose: storage that survives crashes and shows damage; what rows mean for epsilon is `ledger.py`. One
SQLite file of mode 0600, in write-ahead mode with synchronous=FULL (a committed row survives power loss:
https://sqlite.org/pragma.html#pragma_synchronous), written under BEGIN IMMEDIATE (one writer at a time,
over all processes).

Each row carries the SHA-256 of its content and of the row before, so edits and gaps are noticed. A chain
cannot notice its own end being cut off, a whole file put back from an older copy, or all hashes written
anew by someone who owns the file: keep `head()` somewhere else.
"""

import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from urllib.parse import quote

from ..errors import InputError, LedgerError
from .events import ADD_REMOVE, UNIT, Event

_APPLICATION_ID = 0x66624C67
_SCHEMA_VERSION = 1
_WAIT_SECONDS = 60.0
_EVENT_COLUMN = 6
_SCHEMA = f"""
BEGIN;
CREATE TABLE ledger (company TEXT NOT NULL, delta REAL NOT NULL) STRICT;
CREATE TABLE releases (
    seq INTEGER PRIMARY KEY, company TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL,
    block TEXT NOT NULL, release_id TEXT NOT NULL UNIQUE, event TEXT NOT NULL, unit TEXT NOT NULL,
    adjacency TEXT NOT NULL,
    delta REAL NOT NULL, epsilon_before REAL NOT NULL, epsilon_after REAL NOT NULL, time REAL NOT NULL,
    hash TEXT NOT NULL
) STRICT;
CREATE TRIGGER no_update BEFORE UPDATE ON releases BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON releases BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_SCHEMA_VERSION};
COMMIT;
"""
_SELECT = """
SELECT seq, company, run, round, block, release_id, event, unit, adjacency, delta,
       epsilon_before, epsilon_after, time, hash
FROM releases ORDER BY seq
"""
_INSERT = "INSERT INTO releases VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True)
class LedgerRow:
    """One release, as stored, in the order of the columns."""

    seq: int
    company: str
    run: str
    round: int
    block: str
    release_id: str
    event: Event
    unit: str
    adjacency: str
    delta: float
    epsilon_before: float
    epsilon_after: float
    time: float
    hash: str = ""


_FIELDS = tuple(field.name for field in fields(LedgerRow))


class LedgerStore:
    """Append-only rows of one (company, delta)."""

    def __init__(self, path: Path, company: str, delta: float) -> None:
        """Open the file, or create it with this company and delta."""
        self.path = path
        self._genesis = _digest("fedblocks ledger", [_SCHEMA_VERSION, company, delta, UNIT, ADD_REMOVE])
        with self._mendable():
            if not os.path.lexists(path):
                _create(path, company, delta)
            _check_file(path)
            self._connection = _connect(path)
        try:
            with self._mendable():
                self._check_identity(company, delta)
            self.rows()
        except BaseException:
            self.close()
            raise

    def rows(self) -> list[LedgerRow]:
        """All rows in order; LedgerError names the first one that does not fit the chain."""
        with self._mendable():
            stored = self._connection.execute(_SELECT).fetchall()
        rows: list[LedgerRow] = []
        previous = self._genesis
        for number, (*values, digest) in enumerate(stored, start=1):
            if values[0] != number or _digest(previous, values) != digest:
                raise LedgerError(
                    f"ledger {self.path} row {number}: the content does not fit its hash, so it or a row "
                    "before it was changed or removed after it was written: restore the ledger from a backup"
                )
            try:
                values[_EVENT_COLUMN] = Event.from_json(values[_EVENT_COLUMN])
            except InputError as error:
                raise LedgerError(f"ledger {self.path} row {number}: {error}") from error
            rows.append(LedgerRow(**dict(zip(_FIELDS, (*values, digest), strict=True))))
            previous = digest
        return rows

    def append(self, row: LedgerRow) -> None:
        """Add `row` after the last; its `seq` and `hash` are set here. Call within `transaction()`."""
        rows = self.rows()
        row = replace(row, seq=len(rows) + 1)
        values = [getattr(row, name) for name in _FIELDS if name != "hash"]
        values[_EVENT_COLUMN] = row.event.to_json()
        with self._mendable():
            self._connection.execute(_INSERT, (*values, _digest(self.head(rows), values)))

    def head(self, rows: Sequence[LedgerRow] | None = None) -> str:
        """The hash that stands for all rows so far."""
        rows = self.rows() if rows is None else rows
        return rows[-1].hash if rows else self._genesis

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and on disk once left; other processes wait."""
        with self._mendable():
            # IMMEDIATE takes the write lock before reading: no other row can slip in between sum and insert.
            self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            with self._mendable():
                self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        # On disk already, in the write-ahead log; moved on so that a copy of the main file alone is complete.
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def check_integrity(self) -> None:
        """SQLite's own check of the whole file."""
        with self._mendable():
            found = self._connection.execute("PRAGMA integrity_check").fetchone()[0]
        if found != "ok":
            raise LedgerError(f"ledger {self.path} is damaged ({found}): restore it from a backup")

    def close(self) -> None:
        self._connection.close()

    def _check_identity(self, company: str, delta: float) -> None:
        application = self._connection.execute("PRAGMA application_id").fetchone()[0]
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if application != _APPLICATION_ID:
            raise LedgerError(f"{self.path} is an SQLite file but no ledger: give the path of a ledger")
        if version != _SCHEMA_VERSION:
            raise LedgerError(
                f"ledger {self.path} has schema version {version}, this fedblocks reads {_SCHEMA_VERSION}: "
                "use the fedblocks release that wrote it"
            )
        stored = self._connection.execute("SELECT company, delta FROM ledger").fetchall()
        if stored != [(company, delta)]:
            raise LedgerError(
                f"ledger {self.path} belongs to (company, delta) {stored}, not to {(company, delta)}: both "
                "are fixed when a ledger is created; epsilons at another delta cannot be compared"
            )

    @contextmanager
    def _mendable(self) -> Iterator[None]:
        """SQLite's and the system's errors, with what to do about them."""
        try:
            yield
        except OSError as error:
            raise LedgerError(
                f"ledger {self.path}: {error.strerror or error}: its folder must exist and be writable"
            ) from error
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", None) or ""
            advice = "restore it from a backup; do not delete it, or what was spent is forgotten"
            if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                advice = "another process holds it; wait for that process or end it"
            elif name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
                advice = "check that this user may read and write the file and its folder"
            elif name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
                advice = "check the disk and its free space; nothing was charged"
            raise LedgerError(f"ledger {self.path}: {error}: {advice}") from error


def _create(path: Path, company: str, delta: float) -> None:
    """Build the ledger under another name, then link it: an empty file at `path` is always damage."""
    if os.path.lexists(f"{path}-wal"):
        raise LedgerError(
            f"ledger {path} is gone but its write-ahead log {path}-wal is there and may hold charges: "
            "restore both from a backup"
        )
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = _connect(draft)
        try:
            connection.executescript(_SCHEMA)
            connection.execute("INSERT INTO ledger VALUES (?, ?)", (company, delta))
        finally:
            connection.close()
        # Another process may have been first; then its ledger counts.
        with suppress(FileExistsError):
            os.link(draft, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        for rest in (draft, Path(f"{draft}-wal"), Path(f"{draft}-shm")):
            rest.unlink(missing_ok=True)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise LedgerError(f"ledger {path} is not a file: give the path of a file")
    if path.stat().st_size == 0:
        raise LedgerError(
            f"ledger {path} is empty, which a ledger never is: restore it from a backup, or delete it if "
            "this company has never released anything"
        )
    # SQLite gives its side files the mode of the main file.
    path.chmod(0o600)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, isolation_level=None, timeout=_WAIT_SECONDS
    )
    try:
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise LedgerError(f"ledger {path} lies where SQLite cannot keep its log: use a local disk")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _digest(previous: str, values: Sequence[object]) -> str:
    # JSON writes floats with all their digits and marks where a string ends: one text, one content.
    return hashlib.sha256(json.dumps([previous, *values]).encode()).hexdigest()
