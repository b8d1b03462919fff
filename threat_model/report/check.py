"""Is a written report what its run's files say? The page is made again from ledgers, metrics and audit, and compared.

Drawings are left out, as another version of the plotting library draws them otherwise: tables have what they show.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from ...errors import RunError
from ...server.run_folder import RunFolder
from .document import CrossCheck
from .frontier import Drawn
from .write import render

_BLOCKS = frozenset(
    ("p", "li", "td", "th", "dt", "dd", "h1", "h2", "h3", "h4", "tr", "caption", "figcaption")
)
_BLOCKS |= {"pre", "summary", "div", "section", "title"}
_SKIPPED = frozenset(("style", "svg"))
_FOOTER = re.compile(r"from the files in (.+)\. This page is one file")
_VOID = frozenset(("img", "meta", "link", "br"))
MOST = 20  # differences that are told


@dataclass(frozen=True)
class Checked:
    """`differences`: what page and files, or two files, say otherwise of one thing; empty where all agree."""

    differences: tuple[str, ...]
    comparisons: int

    @property
    def ok(self) -> bool:
        return not self.differences


def check_report(run: RunFolder, frontier: Drawn | None = None) -> Checked:
    """`frontier`: of the sweep that the run is a cell of.

    Raises: RunError where no report was written, or a file of the run cannot be read.
    """
    written = written_page(run.path)
    now = render(run, drawn=False, frontier=frontier)
    return check_page(written, now.page, now.report.checks, run.path)


def written_page(folder: Path) -> str:
    """Raises: RunError where there is none."""
    path = folder / "report.html"
    if not path.is_file():
        raise RunError(f"{path}: no such file; write it first with `fedblocks report`")
    return path.read_text("utf-8")


def check_page(page: str, now: str, checks: Sequence[CrossCheck], folder: Path) -> Checked:
    """The page that was written beside the one that the folder's files give `now`, and these beside each other."""
    written, expected = _moved(lines_of(page), folder), lines_of(now)
    wrong = [check for check in checks if not check.agrees]
    found = [f"the run's files disagree on {c.what}: {c.one}; {c.other}" for c in wrong]
    found += _differences(written, expected)
    return Checked(tuple(found[:MOST]), len(expected))


def _moved(lines: list[str], folder: Path) -> list[str]:
    """The lines as they would be had the page been written where the folder is now."""
    footer = _FOOTER.search(lines[-1]) if lines else None
    if footer is None:
        return lines
    old, new = footer[1], str(folder)
    return [line.replace(shlex.quote(old), shlex.quote(new)).replace(old, new) for line in lines]


def _differences(written: list[str], expected: list[str]) -> list[str]:
    found = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, written, expected, autojunk=False).get_opcodes():
        if kind != "equal":
            says, gives = " / ".join(written[a:b]) or "nothing", " / ".join(expected[c:d]) or "nothing"
            found.append(f"the page says “{_short(says)}”, its files give “{_short(gives)}”")
    return found


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:199] + "…"


def lines_of(page: str) -> list[str]:
    """The page's texts, one a paragraph or cell; of a picture its label and a digest of what it shows."""
    reader = _Texts()
    reader.feed(page)
    reader.close()
    reader.end_line()
    return reader.lines


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[str] = []
        self._text: list[str] = []
        self._skipping = 0

    def end_line(self) -> None:
        text = " ".join("".join(self._text).split())
        if text:
            self.lines.append(text)
        self._text = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SKIPPED or self._skipping:
            self._skipping += tag not in _VOID
            return
        if tag in _BLOCKS:
            self.end_line()
        if tag == "img":
            found = dict(attrs)
            shown = hashlib.sha256((found.get("src") or "").encode()).hexdigest()[:16]
            self._text.append(f"{found.get('alt')} [{shown}] ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if not self._skipping and tag not in _SKIPPED:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._skipping:
            self._skipping -= tag not in _VOID
        elif tag in _BLOCKS:
            self.end_line()

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._text.append(data)
