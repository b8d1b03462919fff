"""The threat model's table of what was measured."""

from __future__ import annotations

import re

from fedblocks.threat_model.adversaries import ADVERSARIES
from fedblocks.threat_model.attacks import attacks
from fedblocks.threat_model.pairs import BEGIN, END, HEAD, PAGE, markdown, measured, pairs, strongest


def test_the_page_says_what_was_measured() -> None:
    """Would catch a table that somebody has written by hand, and one of an earlier audit."""
    page = PAGE.read_text("utf-8")
    table = page.partition(BEGIN)[2].partition(END)[0].strip()
    assert table == markdown(measured()).strip()


def test_every_attack_stands_in_it() -> None:
    """Would catch an attack that was added and never measured on the demonstration's run."""
    rows = pairs(measured())
    assert {attack for _, attack, _ in rows} == {attack.name for attack in attacks()}
    assert {name for name, _, _ in rows} == set(ADVERSARIES)
    assert not [row for row in rows if row[2] == "not measured"]


def test_the_strongest_results_make_the_same_table() -> None:
    assert strongest(strongest(measured())) == strongest(measured())
    assert markdown(measured()).startswith(HEAD)


def test_the_page_on_the_audit_names_every_attack() -> None:
    """Would catch an attack that its users cannot read about."""
    page = (PAGE.parents[1] / "docs" / "audit.md").read_text("utf-8")
    named = re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)
    assert sorted(named) == [attack.name for attack in attacks()]
