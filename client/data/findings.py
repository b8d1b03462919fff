"""What a reader found and did to a source, said rather than done in silence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Findings:
    """`facts` ("column age": "numbers, 17 to 90"), `notes` what was dropped, changed or looks odd, `classes` the
    label of each class where the source calls it by name, `left_out` how many rows for which reason.

    Nothing of it enters training. It stays with its owner: in a simulation in the run's folder, at a company on the
    company's own machine.
    """

    source: str
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    classes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    def fact(self, name: str, value: object) -> None:
        self.facts[on_one_line(name)] = on_one_line(str(value))

    def note(self, text: str) -> None:
        """A sentence; what stands in a source, as the name of a column, is shown on one line and as it is written."""
        if (shown := on_one_line(text)) not in self.notes:
            self.notes.append(shown)

    def leave_out(self, reason: str, rows: int) -> None:
        """Count rows that are read in pieces; `reason` follows on "3 rows are left out: "."""
        if rows:
            self.left_out[reason] = self.left_out.get(reason, 0) + rows

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def on_one_line(text: str) -> str:
    """The text with line ends, and signs that steer a terminal, written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def counted(count: int, thing: str) -> str:
    """ "1 row", "3 rows"."""
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def some(names: Iterable[str], most: int = 12) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
