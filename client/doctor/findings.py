"""One finding: how bad it is, what it is called, where it is, what is wrong and how it is mended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...errors import FedblocksError

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """`name` is a fixed word for machines; `where` a file or a field; `mend` is empty for a note."""

    level: Level
    name: str
    where: str
    what: str
    mend: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}; {self.mend}" if self.mend else text


@dataclass
class Findings:
    """All of an examination, in order."""

    found: list[Finding] = field(default_factory=list)

    def error(self, name: str, where: Path | str, what: str, mend: str = "") -> None:
        self.found.append(Finding("error", name, str(where), what, mend))

    def warn(self, name: str, where: Path | str, what: str, mend: str = "") -> None:
        self.found.append(Finding("warning", name, str(where), what, mend))

    def note(self, name: str, where: Path | str, what: str) -> None:
        self.found.append(Finding("note", name, str(where), what))

    @contextmanager
    def as_errors(self, name: str, where: Path | str = "", mend: str = "") -> Iterator[None]:
        """What fedblocks or the system raises meanwhile is an error of this name; its text says the rest."""
        try:
            yield
        except FedblocksError as error:
            self.error(name, where, str(error), mend)
        except OSError as error:
            place = str(error.filename or where)
            self.error(name, place, (error.strerror or type(error).__name__).lower(), mend)
