"""The company's record of decisions: one JSON line each, which cannot be removed, changed or moved unnoticed.

HOME/decisions.jsonl. Every line carries the SHA-256 of itself and of the line before, and where the ledger has grown
the ledger's head, so each of both shows what is missing in the other. A chain does not show that its end was cut
off: the number of lines and the last hash are kept with the ledger's, in steps.sqlite. Neither has a key: who can
write both files can write another history, unless a last hash was noted elsewhere. It stands in signed statements of
the ledger, and the agent says it on stderr, which a service manager keeps.

    begun     the record begins, or goes on after the ledger was accepted: the ledger's rows and head
    policy    the rules have changed: digest
    data      data were imported: digest, examples
    asked     a coordinator asks to join: run, digest of the plan and of its terms
    joined    the rules allow it: run, digest of the data with which it was joined
    approved  a person allows a run: by, why
    denied    a person refuses a run: by, why
    refused   a message was refused: by policy, ledger, protocol or machine; why, the rule or a fixed code
    charged   the ledger was charged: row, head, epsilon after it
    trained   a block was trained
    evaluated a model was judged on held-out examples
    sent      what was made from data leaves: bytes, SHA-256 digest
    model     a finished run's model came and was kept: round, digest

A line holds no value of the data and no text of an exception. It is on disk before what it tells of leaves. An
invented company of a simulation keeps no record.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import InputError, LedgerError
from ..privacy.ledger_file import LedgerRow, read_ledger
from ..protocol import private_file
from .decision_chain import (
    GENESIS,
    LONGEST,
    Value,
    check_beyond,
    check_chain,
    check_last,
    check_line,
    hash_of,
    line_of,
    too_short,
    whole_lines,
    wrong,
)
from .replay_guard import STEPS_FILE, LogHead, Steps

LEDGER_FILE = "ledger.sqlite"

DECISIONS_FILE = "decisions.jsonl"
KINDS = frozenset(
    (
        "begun",
        "policy",
        "data",
        "asked",
        "joined",
        "approved",
        "denied",
        "refused",
        "charged",
        "trained",
        "sent",
        "model",
        "evaluated",
    )
)
Entry = tuple[str, Mapping[str, Value]]
_NOTED = re.compile(r"[0-9a-f]{16,64}")
# Rows of the ledger that a crash leaves without a line: one release is charged at a time, and the next one's line
# comes with those that are missing.
_MOST_UNLOGGED = 1
# Lines that tell of the ledger's rows, and the field that says up to which.
_TELLS = {"begun": "rows", "charged": "row"}


@dataclass(frozen=True)
class Decisions:
    """The record of the company at `home`; none is `kept` by an invented one.

    decisions.write("refused", run="r1", message="query.join", by="policy", why="delta")

    Raises:
        LedgerError: from every method, if the record, or steps.sqlite beside it, is missing, cut off or damaged.
    """

    home: Path
    steps: Steps
    clock: Callable[[], float] = time.time
    kept: bool = True

    @property
    def path(self) -> Path:
        return self.home / DECISIONS_FILE

    def begin(self, rows: int, head: str) -> None:
        """Begin the record, or go on with the one that lies there, beside a ledger of so many rows and this head."""
        if not self.kept:
            return
        with self.steps.log_head() as kept:
            lines = whole_lines(self.path)
            check_chain(self.path, lines)
            lost = max(0, kept.lines - len(lines))
            kept.lines, kept.bytes, kept.rows = len(lines), sum(map(len, lines)), rows
            kept.head = hash_of(lines[-1]) if lines else GENESIS
            self._add(kept, ("begun", {"rows": rows, "head": head, "lost": lost}))

    def write(self, kind: str, **fields: Value) -> None:
        """Add a line; it is on disk when this returns."""
        self.write_all((kind, fields))

    def write_all(self, *entries: Entry) -> None:
        """Add several lines at once."""
        if not self.kept:
            return
        with self.steps.log_head() as kept:
            self._add(kept, *entries)

    def check(self, rows: int | None = None) -> None:
        """Raises what a further line would raise, or where a ledger of so many rows has more than a crash leaves."""
        if not self.kept:
            return
        with self.steps.log_head() as kept:
            self._add(kept)
            if rows is not None:
                _check_unlogged(self.path, rows, kept.rows)

    def charged(self, rows: Sequence[LedgerRow]) -> None:
        """Add a line for each of the ledger's rows that has none, as one that a crash kept from being written."""
        if not self.kept:
            return
        with self.steps.log_head() as kept:
            self._add(kept, rows=rows)
            kept.rows = len(rows)

    def head(self) -> LogHead:
        """How many lines there are, and the last one's hash."""
        self.check()
        return self.steps.seen_log()

    def see_policy(self, text: bytes) -> None:
        """Add a line if the policy's text is not the one that was last seen."""
        if not self.kept:
            return
        digest = hashlib.sha256(text).hexdigest()
        with self.steps.log_head() as kept:
            if kept.policy != digest:
                self._add(kept, ("policy", {"digest": digest}))
                kept.policy = digest

    def _add(self, kept: LogHead, *entries: Entry, rows: Sequence[LedgerRow] = ()) -> None:
        """Lines after the last one, and one for each of the ledger's `rows` that has none yet. What a crash has left
        beyond it is kept if it is whole, else removed."""
        if not kept.head:
            entries = (self._first(kept), *entries)
        try:
            with open(self.path, "r+b", opener=private_file.opener) as file:
                self._catch_up(kept, file)
                text = b""
                for kind, fields in (*entries, *(("charged", _of_row(row)) for row in rows[kept.rows :])):
                    assert kind in KINDS
                    line = line_of(kept.lines + 1, self.clock(), kind, fields, kept.head)
                    text += line
                    kept.follow(line, hash_of(line))
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except FileNotFoundError:
            if kept.lines:
                raise too_short(self.path, kept.lines) from None
            private_file.create(self.path, b"")
            self._add(kept, *entries, rows=rows)
        except OSError as error:
            raise LedgerError(f"{self.path}: {error.strerror}: nothing was decided") from error

    def _first(self, kept: LogHead) -> Entry:
        """The line that begins a record where none was kept, as in a home that an older fedblocks made."""
        if os.path.lexists(self.path):
            raise LedgerError(
                f"{self.path} is there and steps.sqlite does not know of it: `fedblocks ledger accept {self.home}`"
            )
        rows, head = self.steps.seen()
        kept.head, kept.rows = GENESIS, rows
        return "begun", {"rows": rows, "head": head, "lost": 0}

    def _catch_up(self, kept: LogHead, file: IO[bytes]) -> None:
        file.seek(max(0, kept.bytes - LONGEST))
        before = file.read(min(kept.bytes, LONGEST))
        if kept.lines and (len(before) < min(kept.bytes, LONGEST) or not before.endswith(b"\n")):
            raise too_short(self.path, kept.lines)
        if kept.lines:
            check_last(self.path, before.splitlines(keepends=True)[-1], kept)
        rest = file.read()
        beyond = []
        for line in rest[: rest.rfind(b"\n") + 1].splitlines(keepends=True):
            entry = check_line(self.path, kept.lines + 1, line, kept.head)
            beyond.append(entry)
            kept.follow(line, hash_of(line))
            if entry["what"] in _TELLS and (told := _told_by(entry)) is not None:
                kept.rows = told
        check_beyond(self.path, beyond)
        file.truncate(kept.bytes)
        file.seek(kept.bytes)


@dataclass(frozen=True)
class Verified:
    """What was found: `unlogged` rows of the ledger that a crash kept from the record, and lines `beyond` the last
    one that was recorded as seen; `head`, the last line's hash."""

    lines: int
    rows: int
    unlogged: int
    beyond: int
    head: str


def verify(home: Path, seen: Sequence[str] = ()) -> Verified:
    """Check the record against itself, against what was seen of it, and against the ledger beside it.

    The three files have no key. `seen`: hashes of earlier last lines that were noted elsewhere, 16 hexadecimal digits
    at least; up to these lines nobody can have made up another history.

    Raises:
        LedgerError: names the line, or the ledger's row, that is missing, changed or out of order.
    """
    path = home / DECISIONS_FILE
    kept = Steps(home / STEPS_FILE).seen_log()
    lines = whole_lines(path)
    entries = check_chain(path, lines)
    _check_seen(path, entries, seen)
    if len(lines) < kept.lines:
        raise too_short(path, kept.lines)
    if kept.lines:
        check_last(path, lines[kept.lines - 1], kept)
        check_beyond(path, entries[kept.lines :])
    rows = read_ledger(home / LEDGER_FILE).rows
    covered = _covered(path, entries, rows)
    if len(rows) - covered > _MOST_UNLOGGED and whole_lines(path) != lines:
        return verify(home, seen)  # an agent has charged between the two readings
    _check_unlogged(path, len(rows), covered)
    head = entries[-1]["hash"] if entries else GENESIS
    return Verified(len(lines), len(rows), len(rows) - covered, len(lines) - kept.lines, head)


def _check_seen(path: Path, entries: Sequence[dict[str, Any]], seen: Sequence[str]) -> None:
    for noted in seen:
        if not _NOTED.fullmatch(noted):
            raise InputError("--seen", noted, "16 to 64 hexadecimal digits of a last line's hash")
        if not any(entry["hash"].startswith(noted) for entry in entries):
            raise LedgerError(
                f"{path} has no line with the hash {noted}, which was noted elsewhere: another history was written "
                "in its place, or it was lost and begun anew"
            )


def _check_unlogged(path: Path, rows: int, told: int) -> None:
    if rows - told > _MOST_UNLOGGED:
        raise LedgerError(
            f"{path}: the ledger has {rows} rows, the record tells of {told} of them: lines are missing, as if it "
            "and steps.sqlite were replaced by older copies. Restore the newest; if they are lost: "
            f"fedblocks ledger accept {path.parent}"
        )


def _covered(path: Path, entries: Sequence[dict[str, Any]], rows: Sequence[LedgerRow]) -> int:
    """The last of the ledger's rows that the record tells of; LedgerError where they do not agree."""
    covered = 0
    again = max((i for i, entry in enumerate(entries) if entry["what"] == "begun"), default=0)
    for number, entry in enumerate(entries[again:], start=again + 1):
        if entry["what"] not in _TELLS:
            continue
        row, head = _told_by(entry), entry.get("head")
        if row is None:
            raise wrong(path, number, "says no row of the ledger")
        if entry["what"] == "charged" and row != covered + 1:
            raise wrong(path, number, f"tells of row {row} of the ledger after row {covered}")
        covered = row
        if covered > len(rows):
            raise LedgerError(
                f"{path} line {number} tells of row {covered} of the ledger, which has {len(rows)}: it was cut short"
            )
        if covered and rows[covered - 1].hash != head:
            raise LedgerError(f"{path} line {number} tells of another row {covered} than the ledger has")
    return covered


def _told_by(entry: Mapping[str, Any]) -> int | None:
    """How many of the ledger's rows the record tells of after such a line; none where it does not say."""
    told = entry.get(_TELLS[entry["what"]])
    return told if isinstance(told, int) and told >= 0 else None


def _of_row(row: LedgerRow) -> dict[str, Value]:
    return {
        "run": row.run, "round": row.round, "block": row.block, "row": row.seq, "head": row.hash,
        "epsilon": row.epsilon_after if math.isfinite(row.epsilon_after) else "infinite",
    }  # fmt: skip
