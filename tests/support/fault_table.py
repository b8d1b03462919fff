"""The table of faults in docs/operations.md, from the `fault` markers of the tests.

python -m tests.support.fault_table      # writes it
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "operations.md"
_TOP = "| fault | outcome | it says | in vain | test |\n|---|---|---|---|---|\n"


@dataclass(frozen=True)
class End:
    """How a run ends: in words, the exit code of the coordinator that was last at it, and of the one before, if it
    had to be started again."""

    words: str
    exit_code: int
    stopped: int | None = None


ENDS = {
    "finished": End("finished, all rounds", 0),
    "without": End("finished, all rounds, without that company", 0),
    "resumed": End("finished, all rounds, after `--resume`", 0, -9),
    "interrupted": End("exit code 130, agents wait; finished, all rounds, after `--resume`", 0, 130),
    "mended": End("the run stops, exit code 3, agents wait; mended, it is finished after `--resume`", 0, 3),
    "out of room": End(
        "the run stops, exit code 2, agents wait; mended, it is finished after `--resume`", 0, 2
    ),
    "lost": End("that round is lost, all others are done, exit code 3", 3),
    "stopped": End("the run stops, exit code 3, agents wait", 3),
    "refused": End("it does not start, exit code 2 or 3; the run is not touched", 0),
}


@dataclass(frozen=True)
class Row:
    """One fault: how it ends (a key of ENDS), a message that is given word for word, and the most that a company is
    charged beyond the sums that were opened, each time that the fault happens."""

    test: str
    name: str
    ends: str
    in_vain: int
    says: str = ""
    per: str = ""  # what `in_vain` counts by, where the fault happens more than once

    def line(self) -> str:
        says = f"`{self.says}`" if self.says else ""
        vain = f"{self.in_vain} {self.per}".strip()
        return f"| {self.name} | {ENDS[self.ends].words} | {says} | {vain} | `{self.test}` |\n"


@lru_cache
def rows() -> list[Row]:
    """The rows of all tests, in the order of files and of lines."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if "mark.fault(" in (text := path.read_text("utf-8")):
            found += list(_rows_in(ast.parse(text)))
    return found


def table() -> str:
    return _TOP + "".join(row.line() for row in rows())


def with_table(page: str) -> str:
    """The page with the table as it is now, in place of the one under "## Faults"."""
    before, heading, rest = page.partition("\n## Faults\n")
    lines = rest.splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    after = next((i for i in range(first, len(lines)) if not lines[i].startswith("|")), len(lines))
    return before + heading + "".join(lines[:first]) + table() + "".join(lines[after:])


def _rows_in(tree: ast.Module) -> Iterator[Row]:
    """Of markers on tests, and on parameters of tests; their arguments are literals."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in (each for decorator in function.decorator_list for each in ast.walk(decorator)):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.fault"):
                    values: dict[str, Any] = {
                        str(word.arg): ast.literal_eval(word.value) for word in node.keywords
                    }
                    yield Row(function.name, *map(ast.literal_eval, node.args), **values)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8")), "utf-8")
