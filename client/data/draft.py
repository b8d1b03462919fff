"""What looking at a source gives: what was found, and the text of a contract to start from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tomli_w

from .findings import Findings, counted


@dataclass(frozen=True)
class Inspection:
    """`draft` is the text of a contract, `example` what the first example becomes by it."""

    findings: Findings
    draft: str
    example: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {**self.findings.to_json(), "draft": self.draft, "example": self.example}


def contract_text(raw: dict[str, Any], findings: Findings) -> str:
    """TOML, with the notes above it."""
    notes = [f"# - {note}" for note in findings.notes]
    head = [
        "# A draft: read it, and mend what is guessed. Ranges and values were found in the file; of private data,",
        "# put what the field allows in their place.",
    ]
    body = _shown(tomli_w.dumps({key: value for key, value in raw.items() if value not in ({}, None)}))
    return "\n".join([*head, *notes, "", _ARRAY.sub(_on_one_line, body)])


def _shown(toml: str) -> str:
    """Signs that a terminal does not show, or obeys, as TOML's escapes: they stand in strings alone."""
    return "".join(
        c if c.isprintable() or c == "\n" else f"\\U{ord(c):08x}" if ord(c) > 0xFFFF else f"\\u{ord(c):04x}"
        for c in toml
    )


_ARRAY = re.compile(r"\[\n((?:    .+,\n)+)\]")


def _on_one_line(array: re.Match[str]) -> str:
    short = "[" + ", ".join(line.strip().rstrip(",") for line in array[1].splitlines()) + "]"
    return short if len(short) < 90 else array[0]


def note_sentinels(name: str, values: npt.NDArray[np.float64], findings: Findings) -> None:
    """Note a number far outside all others that stands there again and again, as for a value that is missing."""
    for sentinel in _SENTINELS:
        times = int((values == sentinel).sum())
        others = values[values != sentinel]
        if times > 1 and len(others) and abs(sentinel) > 3 * np.abs(others).max():
            findings.note(
                f"column {name!r} is {sentinel:g} in {counted(times, 'row')}: perhaps a sign of no value"
            )


_SENTINELS = (-9999.0, -999.0, -99.0, 999.0, 9999.0, 99999.0)
