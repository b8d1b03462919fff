"""The page for operators names a test for every fault: each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_fault_of_the_table_names_a_test_that_exists() -> None:
    """Would catch a row that promises what nothing checks."""
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    table = page.partition("## Faults")[2]
    named = [re.findall(r"`(test_\w+)`", line) for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(named) >= 10
    assert all(len(names) == 1 for names in named)
    written = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for (name,) in named if f"def {name}(" not in written] == []
