"""Reading a ledger's file: whose it is, its rows in order, and whether their hash chain holds.

Purpose: what a writer (`ledger_store`) and a reader share. `read_ledger` takes a copy of the rows and never creates
a ledger or changes a row, also while another process writes; a writer that closes meanwhile leaves its write-ahead
log to the next one.

Each row carries the SHA-256 of its content and of the row before, so edits and gaps are noticed. A chain cannot show
that its end was cut off, that the whole file was replaced by an older copy, or that the file's owner has recomputed
all hashes: so its head is kept elsewhere, and `check_seen` compares.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from ..errors import InputError, LedgerError
from .accounting import Guarantee
from .adversaries import against, seen_by_company
from .composition import COMPOSITIONS, RENYI, Composition, Run, Terms, composition, order_for
from .events import ADD_REMOVE, ADJACENCIES, UNIT, Event, SharedSkellamSteps, is_unit
from .kept_rows import KeptRows

APPLICATION_ID = 0x66624C67
# Version 1 had no adjacency of its own: all its ledgers are for adding or removing an example. Versions 1 and 2
# had no composition and pinned no runs.
SCHEMA_VERSION = 3
WAIT_SECONDS = 60.0
EVENT_COLUMN = 6
# Rows that may be written and not yet recorded as seen. A process that is killed in between leaves one, until the
# next charge; so this bounds the processes of one company that were killed at once, or are running.
MOST_UNSEEN = 8
_TRIES = 20


@dataclass(frozen=True)
class LedgerHeader:
    """What is fixed when a ledger is created."""

    company: str
    delta: float
    adjacency: str
    composition: str
    order: float | None
    version: int = SCHEMA_VERSION

    @property
    def genesis(self) -> str:
        """The hash before the first row."""
        fixed: list[object] = [self.version, self.company, self.delta, UNIT, self.adjacency]
        return digest("fedblocks ledger", [*fixed, self.composition, self.order] if self.pinned else fixed)

    @property
    def pinned(self) -> bool:
        """Whether rows say what their run is pinned to."""
        return self.version >= 3

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row's hash covers, in order."""
        return tuple(
            name for name in FIELDS if name != "hash" and (self.pinned or name not in ("planned", "account"))
        )


@dataclass(frozen=True)
class LedgerRow:
    """One release, as stored, in the order of the columns; `planned`: the most releases of its run, 0 if unknown;
    `account`: the version of the accountant that wrote it."""

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
    planned: int = 0
    account: str = ""
    hash: str = ""


Runs = dict[str | int, Run]

FIELDS = tuple(field.name for field in fields(LedgerRow))
_kept = KeptRows[LedgerRow](most=20_000)  # some 50 MB


@dataclass(frozen=True)
class LedgerCopy:
    """A ledger as it was at one moment."""

    path: Path
    header: LedgerHeader
    rows: tuple[LedgerRow, ...]

    @property
    def head(self) -> str:
        return self.rows[-1].hash if self.rows else self.header.genesis

    @property
    def events(self) -> list[Event]:
        return [row.event for row in self.rows]

    @property
    def composition(self) -> Composition:
        return composition(self.header.composition, self.header.delta, self.header.order)

    @property
    def runs(self) -> list[Run]:
        return list(runs_of(self.rows).values())

    @property
    def spent(self) -> Guarantee:
        """The cost of all rows together."""
        return spent(self.header, self.rows)


def runs_of(rows: Iterable[LedgerRow]) -> Runs:
    """The runs by name, in the order in which they began; rows of old schemas, by number, are a run each."""
    runs: Runs = {}
    for row in rows:
        add_row(runs, row)
    return runs


def add_row(runs: Runs, row: LedgerRow) -> None:
    """`runs` after one more row, in place."""
    key = row.run if row.planned else row.seq
    begun = runs.get(key) or Run(Terms(row.event, row.planned or 1, row.unit), 0)
    runs[key] = begun._replace(made=begun.made + 1)


def spent(header: LedgerHeader, rows: Sequence[LedgerRow]) -> Guarantee:
    """The cost of `rows` together, by the ledger's composition."""
    rule = composition(header.composition, header.delta, header.order)
    runs = list(runs_of(rows).values())
    return Guarantee(
        rule.epsilon(runs),
        header.delta,
        " + ".join(dict.fromkeys(row.event.mechanism for row in rows)) or "no release",
        unit=rows[0].unit if rows else UNIT,
        adjacency=header.adjacency,
        accountant=rule.accountants(runs),
        composition=str(rule),
        against=against(row.event for row in rows),
        epsilon_against_company=rule.epsilon(_seen_by_company(rows)),
    )


def _seen_by_company(rows: Sequence[LedgerRow]) -> list[Run]:
    """The runs against a company that takes part; each run's sums count as those with the fewest shares."""
    runs = runs_of(rows)
    for row in rows:
        key = row.run if row.planned else row.seq
        counted, event = runs[key].terms.event, row.event
        if isinstance(counted, SharedSkellamSteps) and isinstance(event, SharedSkellamSteps):
            # A sum of one share is the company's own, which tells it nothing new.
            shares = min(counted.shares, event.shares, key=lambda n: (n == 1, n))
            fewest = replace(counted, shares=shares)
            runs[key] = runs[key]._replace(terms=replace(runs[key].terms, event=fewest))
    return [
        run._replace(terms=replace(run.terms, event=seen_by_company(run.terms.event)))
        for run in runs.values()
    ]


def read_ledger(path: Path) -> LedgerCopy:
    """A checked copy of the ledger at `path`.

    Raises:
        InputError: there is none.
        LedgerError: it is damaged, or of a schema that is not known here.
    """
    if not os.path.lexists(path):
        raise InputError("ledger", str(path), "no such file")
    check_file(path)
    for _ in range(_TRIES):
        before = _stamp(path)
        # Without a write-ahead log nobody writes, so the file is read as immutable. Else SQLite takes its locks.
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
    """Check that the ledger begins with what was seen of it: `rows` rows, the last with the hash `head`.

    It may be longer by up to MOST_UNSEEN rows, which were written and not yet recorded as seen.

    Raises:
        LedgerError: it does not.
    """
    if rows <= len(ledger.rows) and replace(ledger, rows=ledger.rows[:rows]).head == head:
        if len(ledger.rows) - rows <= MOST_UNSEEN:
            return
        raise LedgerError(
            f"ledger {ledger.path} has {len(ledger.rows)} rows, but only {rows} were seen here: steps.sqlite was "
            "replaced by an older copy. Restore its newest copy; if that is lost, end the ledger's runs, whose steps "
            f"it may lack, with `fedblocks ledger accept {ledger.path.parent}`"
        )
    found = f"has {len(ledger.rows)} rows" if len(ledger.rows) < rows else f"differs before row {rows + 1}"
    raise LedgerError(
        f"ledger {ledger.path} {found}, but {rows} were charged here: it was cut short, or replaced, perhaps by an "
        "older copy. Restore the newest copy; if that is lost, continue with this one by "
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
            header = read_header(connection, path)
            check_integrity(connection, path)
        return LedgerCopy(path, header, tuple(read_rows(connection, path, header)))
    finally:
        connection.close()


def _stamp(path: Path) -> tuple[int, ...]:
    state = path.stat()
    return (state.st_ino, state.st_size, state.st_mtime_ns, int(os.path.lexists(f"{path}-wal")))


def read_header(connection: sqlite3.Connection, path: Path) -> LedgerHeader:
    """Whose ledger it is; LedgerError for other files and for unknown schemas."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise LedgerError(f"{path} is an SQLite file but no ledger: give the path of a ledger")
    if not 1 <= version <= SCHEMA_VERSION:
        raise LedgerError(
            f"ledger {path} has schema version {version}, this fedblocks reads up to {SCHEMA_VERSION}: "
            "use the fedblocks release that wrote it"
        )
    adjacency = "adjacency" if version > 1 else f"'{ADD_REMOVE}'"
    rule = "composition, renyi_order" if version > 2 else f"'{RENYI}', NULL"
    stored = connection.execute(f"SELECT company, delta, {adjacency}, {rule} FROM ledger").fetchall()
    known = len(stored) == 1 and stored[0][2] in ADJACENCIES and stored[0][3] in COMPOSITIONS
    if not known or not 0 < stored[0][1] < 1:
        raise LedgerError(f"ledger {path} does not say whose it is: restore it from a backup")
    company, delta, found, name, order = stored[0]
    if version <= 2:
        # Its runs are not pinned, so the rule that counts release by release holds for it: see `ledger`.
        order = order_for(delta=delta)
    return LedgerHeader(company, delta, found, name, order, version)


def read_rows(connection: sqlite3.Connection, path: Path, header: LedgerHeader) -> list[LedgerRow]:
    """All rows in order; LedgerError names the first one that does not fit the chain or the ledger."""
    names = header.columns
    with mendable(path):
        stored = connection.execute(f"SELECT {', '.join(names)}, hash FROM releases ORDER BY seq").fetchall()
    ledger = (os.path.abspath(path), header)
    rows = list(_kept.beginning(ledger, stored))
    previous, known = rows[-1].hash if rows else header.genesis, len(rows)
    for number, (*values, hash_) in enumerate(stored[known:], start=known + 1):
        if values[0] != number or digest(previous, values) != hash_:
            raise LedgerError(
                f"ledger {path} row {number}: the content does not fit its hash, so it or a row "
                "before it was changed or removed after it was written: restore the ledger from a backup"
            )
        try:
            values[EVENT_COLUMN] = _event(values[EVENT_COLUMN])
        except InputError as error:
            raise LedgerError(f"ledger {path} row {number}: {error}") from error
        row = LedgerRow(**dict(zip((*names, "hash"), (*values, hash_), strict=True)))
        # All of one unit: epsilons for an example and for a group of them do not add up (see `ledger`).
        unit = rows[0].unit if rows else row.unit if is_unit(row.unit) else UNIT
        own = (header.company, header.delta, header.adjacency, header.adjacency, unit)
        if (row.company, row.delta, row.adjacency, row.event.adjacency, row.unit) != own:
            raise LedgerError(f"ledger {path} row {number} is not of this ledger {own}")
        rows.append(row)
        previous = hash_
    _kept.keep(ledger, stored, rows)
    return rows


@lru_cache(maxsize=1024)
def _event(text: str) -> Event:
    """Cached: a run's rows all have the same event, and are read at every message."""
    return Event.from_json(text)


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
    """Turns errors of SQLite and of the system into a LedgerError with advice."""
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
    # JSON writes floats with all their digits and delimits strings: equal texts mean equal contents.
    return hashlib.sha256(json.dumps([previous, *values]).encode()).hexdigest()
