"""The chain of a record's lines: how a line is written, and whether lines are as they were written.

A line is a JSON object with its number, its time, what it is about, the hash of the line before, and at its end its
own: the SHA-256 of the object without it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import LedgerError
from .replay_guard import LogHead

GENESIS = hashlib.sha256(b"fedblocks decisions").hexdigest()
Value = str | int | float | bool
LONGEST = 1 << 14  # bytes of a line
_LONGEST_TEXT = 300  # characters of a field
# Lines that are written at once, besides a line for each charge: the first of a record, and two about one message.
MOST_AT_ONCE = 3


def line_of(number: int, when: float, kind: str, fields: Mapping[str, Value], before: str) -> bytes:
    told = {
        name: value[:_LONGEST_TEXT] if isinstance(value, str) else value for name, value in fields.items()
    }
    entry: dict[str, Value] = {"line": number, "time": when, "what": kind, **told, "before": before}
    digest = hashlib.sha256(json.dumps(entry).encode()).hexdigest()
    return json.dumps(entry | {"hash": digest}).encode() + b"\n"


def hash_of(line: bytes) -> str:
    """The hash that a line says it has."""
    return line.rstrip().rpartition(b'"hash": "')[2].rstrip(b'"}').decode("ascii", "replace")


def check_chain(path: Path, lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """The entries, if each line is as it was written after the one before.

    Raises:
        LedgerError: names the first line that was changed, or before which one was removed or moved.
    """
    entries: list[dict[str, Any]] = []
    before = GENESIS
    for number, line in enumerate(lines, start=1):
        entries.append(check_line(path, number, line, before))
        before = entries[-1]["hash"]
    return entries


def check_line(path: Path, number: int, line: bytes, before: str) -> dict[str, Any]:
    """The entry of a line; LedgerError unless it is as it was written in this place."""
    try:
        entry: dict[str, Any] = json.loads(line)
        fields = {k: v for k, v in entry.items() if k not in ("line", "time", "what", "before", "hash")}
        same = line_of(entry["line"], entry["time"], entry["what"], fields, entry["before"]) == line
    except (ValueError, KeyError, TypeError, AttributeError):
        raise wrong(path, number, "is not as fedblocks wrote it") from None
    if not same:
        raise wrong(path, number, "was changed after it was written")
    if entry["line"] != number or entry["before"] != before:
        raise wrong(path, number, "does not follow the line before: one was removed, added or moved")
    return entry


def check_last(path: Path, line: bytes, kept: LogHead) -> None:
    """Check that this is the last line that was recorded as seen."""
    try:
        before = str(json.loads(line)["before"])
    except (ValueError, KeyError, TypeError):
        before = ""
    if check_line(path, kept.lines, line, before)["hash"] != kept.head:
        raise wrong(path, kept.lines, "is not the one that was written there")


def check_beyond(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Check that lines after the last one that was recorded as seen are no more than one crash leaves."""
    if sum(entry["what"] != "charged" for entry in entries) > MOST_AT_ONCE:
        raise LedgerError(
            f"{path} has {len(entries)} lines more than steps.sqlite knows of: steps.sqlite was replaced by an older "
            f"copy, or lines were added by hand. Restore its newest copy; if that is lost: fedblocks ledger accept "
            f"{path.parent}"
        )


def whole_lines(path: Path) -> list[bytes]:
    """The lines, without one that a crash has left unfinished."""
    if not os.path.lexists(path):
        return []
    raw = path.read_bytes()
    return raw[: raw.rfind(b"\n") + 1].splitlines(keepends=True)


def too_short(path: Path, lines: int) -> LedgerError:
    return LedgerError(
        f"{path} has fewer than the {lines} lines that were written: it was cut short, replaced or lost; restore it "
        f"from a backup, or go on without: mv {path} {path}.old; fedblocks ledger accept {path.parent}"
    )


def wrong(path: Path, number: int, what: str) -> LedgerError:
    return LedgerError(f"{path} line {number} {what}; restore the file from a backup")
