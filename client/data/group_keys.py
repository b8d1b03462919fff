"""Whose a record is: the values of the column that a contract calls `group`, and which of them count as one.

Values that differ in case, in spaces, in invisible characters or in the Unicode form of a character name one group:
"Anna ", "anna" and "ANNA" are far more often one person than two. Both mistakes cost the same: a person
whose records are two groups, or two people in one group, move a sum by up to twice the clip. So what is read as one
is counted and said, for a person to judge. A value that is missing is refused by its place, or with
`missing = "drop"` its record is left out: records without a group are neither nobody's nor one person's.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict

import numpy as np
import torch

from ...blocks.examples import Groups
from .findings import Findings, counted

_SPACES = ("Zs", "Zl", "Zp")
_BLANKS = "\t\n\r\v\f"
_INVISIBLE = ("Cc", "Cf")
_FEW = 5


def folded(value: str) -> str:
    """The name under which a value is compared with others; empty where it is none."""
    found, before = _once_folded(value), value
    for _ in range(_FEW):  # what folding a letter makes may itself be folded
        if found == before:
            break
        found, before = _once_folded(found), found
    return found


def _once_folded(value: str) -> str:
    composed = unicodedata.normalize("NFKC", value).casefold()
    seen = (
        " " if c in _BLANKS or unicodedata.category(c) in _SPACES else c
        for c in composed
        if c in _BLANKS or unicodedata.category(c) not in _INVISIBLE
    )
    # Again, since what was taken out may have stood between a letter and its accent.
    return unicodedata.normalize("NFKC", " ".join("".join(seen).split()))


def name_of(value: object) -> str | None:
    """A cell of the column as text; none where it holds nothing. Raises: TypeError where it is no name or number."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):  # a column of whole numbers with empty cells
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return value
    raise TypeError(type(value).__name__)


class GroupKeys:
    """Collects the group of each record, in order.

    keys = GroupKeys("author")
    keys.add("Anna ")             # True; False where the value is missing, and nothing is added
    groups = keys.groups(findings)
    """

    def __init__(self, column: str) -> None:
        self.column = column
        self._digests: list[bytes] = []
        self._spellings: defaultdict[bytes, set[str]] = defaultdict(set)
        self._records: defaultdict[bytes, int] = defaultdict(int)

    def digest(self, value: object) -> bytes | None:
        """32 bytes that stand for the group, none where the value is missing. Raises: TypeError as `name_of`."""
        written = name_of(value)
        name = "" if written is None else folded(written)
        if written is None or not name:
            return None
        found = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
        if len(spellings := self._spellings[found]) < _FEW:
            spellings.add(written)
        return found

    def add(self, digest: bytes, times: int = 1) -> None:
        """The next `times` records are of this group."""
        self._digests += [digest] * times
        self._records[digest] += times

    def groups(self, findings: Findings) -> Groups:
        """All of them, and what is to be said of them."""
        sizes = list(self._records.values())
        if sizes:
            shown = (
                f"{len(sizes):,} by column {self.column!r}, of {min(sizes):,} to {max(sizes):,} records each"
            )
            findings.fact("groups", shown)
        several = sum(len(self._spellings[digest]) > 1 for digest in self._records)
        if several:
            findings.note(
                f"{counted(several, 'group')} in column {self.column!r} written in more than one way (case, spaces, "
                "Unicode forms), each read as one group"
            )
        values = np.frombuffer(b"".join(self._digests), dtype=np.int64).reshape(-1, 4)
        return Groups(self.column, torch.from_numpy(values.copy()))


def records_beside_groups(groups: Groups) -> str:
    """A warning, where the unit of privacy is a record although the data say whose each is."""
    most = int(groups.sizes.max()) if len(groups) else 0
    return (
        f"column {groups.column!r} names {counted(len(groups), 'group')} of up to {counted(most, 'record')}, but the "
        f"unit of privacy is one record: epsilon is that of one record, not of all {most:,} of one group; "
        f"training.group = {groups.column!r} makes the group the unit"
    )
