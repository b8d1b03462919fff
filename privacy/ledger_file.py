"""Reading a ledger's file: whose it is, its rows in order, and whether their hash chain holds.

Purpose: what a writer (`ledger_store`) and a mere reader share. `read_ledger` takes a copy of the rows and never
creates a ledger or changes a row, also while another process writes; a writer that closes meanwhile leaves its
write-ahead log to the next one.

Each row carries the SHA-256 of its content and of the row before, so edits and gaps are noticed. A chain
cannot notice its own end being cut off, a whole file put back from an older copy, or all hashes written
anew by someone who owns the file: the head is kept somewhere else, and `check_seen` compares.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from urllib.parse import quote

from ..errors import InputError, LedgerError
from .events import ADD_REMOVE, ADJACENCIES, UNIT, Event

APPLICATION_ID = 0x66624C67
# Version 1 had no adjacency of its own: all its ledgers are for adding or removing an example.
SCHEMA_VERSION = 2
WAIT_SECONDS = 60.0
EVENT_COLUMN = 6
_TRIES = 20
_SELECT = """
SELECT seq, company, run, round, block, release_id, event, unit, adjacency, delta,
       epsilon_before, epsilon_after, time, hash
FROM releases ORDER BY seq
"""


@dataclass(frozen=True)
class Identity:
    """What is fixed when a ledger is created."""

    company: str
    delta: float
    adjacency: str
    version: int = SCHEMA_VERSION

    @property
    def genesis(self) -> str:
        """The hash before the first row."""
        return digest("fedblocks ledger", [self.version, self.company, self.delta, UNIT, self.adjacency])


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


FIELDS = tuple(field.name for field in fields(LedgerRow))


@dataclass(frozen=True)
class LedgerCopy:
    """A ledger as it was at one moment."""

    path: Path
    identity: Identity
    rows: tuple[LedgerRow, ...]

    @property
    def head(self) -> str:
        return self.rows[-1].hash if self.rows else self.identity.genesis

    @property
    def events(self) -> list[Event]:
        return [row.event for row in self.rows]


def read_ledger(path: Path) -> LedgerCopy:
    """A checked copy of the ledger at `path`; InputError if there is none, LedgerError if it is damaged."""
    if not os.path.lexists(path):
        raise InputError("ledger", str(path), "no such file")
    check_file(path)
    for _ in range(_TRIES):
        before = _stamp(path)
        # Without a write-ahead log nobody writes, and SQLite need not make one. Else it takes SQLite's locks.
        idle = not os.path.lexists(f"{path}-wal")
        try:
            found = _read(path, "&immutable=1" if idle else "")
        except LedgerError:
            if idle and _stamp(path) != before:
                continue
            raise
        if not idle or _stamp(path) == before:
            return found
    raise LedgerError(f"ledger {path}: another process keeps opening it; try again")


def check_seen(ledger: LedgerCopy, rows: int, head: str) -> None:
    """LedgerError unless the ledger begins with what was seen of it: so many rows, the last with the hash `head`."""
    if rows <= len(ledger.rows) and replace(ledger, rows=ledger.rows[:rows]).head == head:
        return
    found = f"has {len(ledger.rows)} rows" if len(ledger.rows) < rows else f"differs before row {rows + 1}"
    raise LedgerError(
        f"ledger {ledger.path} {found}, but {rows} were charged here: it was cut short, replaced or put back from an "
        "older copy. Restore the newest copy; if that is lost, count from this one with "
        f"`fedblocks ledger accept {ledger.path.parent}`"
    )


def _read(path: Path, mode: str) -> LedgerCopy:
    with mendable(path):
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode=ro{mode}", uri=True, isolation_level=None, timeout=WAIT_SECONDS
        )
    try:
        with mendable(path):
            # One snapshot for everything that is read.
            connection.execute("BEGIN")
            identity = read_identity(connection, path)
            check_integrity(connection, path)
        return LedgerCopy(path, identity, tuple(read_rows(connection, path, identity)))
    finally:
        connection.close()


def _stamp(path: Path) -> tuple[int, ...]:
    state = path.stat()
    return (state.st_ino, state.st_size, state.st_mtime_ns, int(os.path.lexists(f"{path}-wal")))


def read_identity(connection: sqlite3.Connection, path: Path) -> Identity:
    """Whose ledger it is; LedgerError for other files and for schemas that are not known here."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise LedgerError(f"{path} is an SQLite file but no ledger: give the path of a ledger")
    if version not in (1, SCHEMA_VERSION):
        raise LedgerError(
            f"ledger {path} has schema version {version}, this fedblocks reads up to {SCHEMA_VERSION}: "
            "use the fedblocks release that wrote it"
        )
    adjacency = "adjacency" if version > 1 else f"'{ADD_REMOVE}'"
    stored = connection.execute(f"SELECT company, delta, {adjacency} FROM ledger").fetchall()
    if len(stored) != 1 or stored[0][2] not in ADJACENCIES:
        raise LedgerError(f"ledger {path} does not say whose it is: restore it from a backup")
    company, delta, found = stored[0]
    return Identity(company, delta, found, version)


def read_rows(connection: sqlite3.Connection, path: Path, identity: Identity) -> list[LedgerRow]:
    """All rows in order; LedgerError names the first one that does not fit the chain or the ledger."""
    with mendable(path):
        stored = connection.execute(_SELECT).fetchall()
    rows: list[LedgerRow] = []
    previous = identity.genesis
    for number, (*values, hash_) in enumerate(stored, start=1):
        if values[0] != number or digest(previous, values) != hash_:
            raise LedgerError(
                f"ledger {path} row {number}: the content does not fit its hash, so it or a row "
                "before it was changed or removed after it was written: restore the ledger from a backup"
            )
        try:
            values[EVENT_COLUMN] = Event.from_json(values[EVENT_COLUMN])
        except InputError as error:
            raise LedgerError(f"ledger {path} row {number}: {error}") from error
        row = LedgerRow(**dict(zip(FIELDS, (*values, hash_), strict=True)))
        own = (identity.company, identity.delta, identity.adjacency, identity.adjacency, UNIT)
        if (row.company, row.delta, row.adjacency, row.event.adjacency, row.unit) != own:
            raise LedgerError(f"ledger {path} row {number} is not of this ledger {own}")
        rows.append(row)
        previous = hash_
    return rows


def check_integrity(connection: sqlite3.Connection, path: Path) -> None:
    """SQLite's own check of the whole file."""
    with mendable(path):
        found = connection.execute("PRAGMA integrity_check").fetchone()[0]
    if found != "ok":
        raise LedgerError(f"ledger {path} is damaged ({found}): restore it from a backup")


def check_file(path: Path) -> None:
    if not path.is_file():
        raise LedgerError(f"ledger {path} is not a file: give the path of a file")
    if path.stat().st_size == 0:
        raise LedgerError(
            f"ledger {path} is empty, which a ledger never is: restore it from a backup, or delete it if "
            "this company has never released anything"
        )


@contextmanager
def mendable(path: Path) -> Iterator[None]:
    """SQLite's and the system's errors, with what to do about them."""
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"ledger {path}: {error.strerror or error}: its folder must exist and be writable"
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
        raise LedgerError(f"ledger {path}: {error}: {advice}") from error


def digest(previous: str, values: Sequence[object]) -> str:
    # JSON writes floats with all their digits and marks where a string ends: one text, one content.
    return hashlib.sha256(json.dumps([previous, *values]).encode()).hexdigest()
