"""The page for operators: its table of faults is what the tests promise, and every fault has its test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from support.fault_table import ENDS, PAGE, rows, table, with_table

TESTS = Path(__file__).resolve().parents[1]
# What the table must have, whatever else it has; words of a fault's name.
FAULTS = (
    "wire cut for 5 s", "wire cut for 2 minutes", "agent killed in each phase", "coordinator killed in each phase",
    "SuperLink killed and restarted", "company disk full", "coordinator disk full", "clock a day ahead",
    "clock a day behind", "company joining late", "company gone for good", "data replaced", "policy tightened",
    "ceiling of a run reached in mid-run", "wrong certificate", "certificate expired", "swapped certificates",
    "roster difference", "two agents of one home", "NaN, infinities", "a wrong shape", "oversized", "stale",
    "Ctrl-C or SIGTERM at the coordinator", "Ctrl-C or SIGTERM at an agent", "port in use", "SIGSTOP",
)  # fmt: skip


def test_the_table_on_the_page_is_the_one_of_the_tests() -> None:
    """Would catch an outcome that is written and not checked: python -m tests.support.fault_table writes it anew."""
    page = PAGE.read_text("utf-8")
    assert table() in page
    assert with_table(page) == page


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_must_be_survived_has_a_test(fault: str) -> None:
    assert [row.test for row in rows() if fault in row.name]


def test_no_fault_costs_more_than_a_round_or_ends_in_a_way_of_its_own() -> None:
    found = rows()
    assert {row.ends for row in found} <= ENDS.keys()
    assert {row.in_vain for row in found} == {0, 1}
    names = [row.name for row in found]
    assert len(set(names)) == len(names)


def test_a_test_with_a_fault_is_held_to_its_row() -> None:
    """Would catch a row whose test does not look at what the row says; the fixture `fault` fails such a test."""
    wanting = {row.test for row in rows()}
    functions = [
        node
        for path in TESTS.rglob("test_*.py")
        if "mark.fault(" in (text := path.read_text("utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name in wanting
    ]
    assert {node.name for node in functions} == wanting
    assert [node.name for node in functions if "fault" not in {arg.arg for arg in node.args.args}] == []
