"""Rows that were checked once are not checked again, and nothing that was changed since is taken for them."""

from pathlib import Path

import pytest

from fedblocks.errors import LedgerError
from fedblocks.privacy import ledger_file
from fedblocks.privacy.composition import Terms
from fedblocks.privacy.events import GaussianSteps
from fedblocks.privacy.kept_rows import KeptRows
from fedblocks.privacy.ledger import Ledger
from fedblocks.privacy.ledger_file import read_ledger

TERMS = Terms(GaussianSteps(sampling_rate=0.02, noise_multiplier=1.5, steps=20, dimension=900), 100)
ROWS = 6


def ledger_of(path: Path, company: str = "acme", rows: int = ROWS) -> Path:
    with Ledger.open(path, company, epsilon_ceiling=8.0, delta=1e-5) as ledger:
        for n in range(rows):
            ledger.charge(run="r", round=n, block="b0", release_id=f"id-{n}", terms=TERMS)
    return path


def hashes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is hashed from now on."""
    found: list[object] = []
    digest = ledger_file.digest

    def counted(previous: str, values: list[object]) -> str:
        found.append(values)
        return digest(previous, values)

    monkeypatch.setattr(ledger_file, "digest", counted)
    return found


def test_reading_again_hashes_what_is_new_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch rounds whose time grows with the rounds before: every message reads the whole ledger."""
    path = ledger_of(tmp_path / "ledger.sqlite")
    first = read_ledger(path).rows
    found = hashes(monkeypatch)
    assert read_ledger(path).rows == first
    assert all(len(values) != len(ledger_file.FIELDS) - 1 for values in found)  # the genesis alone
    with Ledger.open(path, "acme", epsilon_ceiling=8.0, delta=1e-5) as ledger:
        found.clear()
        ledger.charge(run="r", round=ROWS, block="b0", release_id="new", terms=TERMS)
        assert len(ledger.rows()) == ROWS + 1
    assert {values[0] for values in found if len(values) > 7} == {ROWS + 1}  # type: ignore[index, arg-type]


def test_another_ledger_put_in_its_place_is_read_anew(tmp_path: Path) -> None:
    """Would catch rows that are told by the file's name, and not by what is in it."""
    path = ledger_of(tmp_path / "ledger.sqlite")
    before = read_ledger(path).rows
    other = ledger_of(tmp_path / "other.sqlite", rows=ROWS - 1)
    other.replace(path)
    after = read_ledger(path).rows
    assert len(after) == ROWS - 1
    assert [row.hash for row in after] != [row.hash for row in before[: ROWS - 1]]
    ledger_of(tmp_path / "third.sqlite", company="else").replace(path)
    assert {row.company for row in read_ledger(path).rows} == {"else"}


@pytest.mark.parametrize("row", [1, 3, ROWS])
def test_a_row_that_changes_after_it_was_checked_is_named(tmp_path: Path, row: int) -> None:
    import sqlite3

    path = ledger_of(tmp_path / "ledger.sqlite")
    read_ledger(path)
    with sqlite3.connect(path) as file:
        file.execute("DROP TRIGGER no_update")
        file.execute("UPDATE releases SET epsilon_after = epsilon_after / 2 WHERE seq = ?", (row,))
    file.close()
    with pytest.raises(LedgerError, match=f"row {row}: the content does not fit its hash"):
        read_ledger(path)


def test_as_many_rows_are_kept_as_is_said() -> None:
    """Would catch a process whose memory grows with every ledger that it reads."""
    kept = KeptRows[str](most=5)
    stored = {name: [(name, i) for i in range(3)] for name in "abc"}
    for name, values in stored.items():
        kept.keep(name, values, [f"{name}{i}" for i in range(3)])
    assert kept.beginning("a", stored["a"]) == kept.beginning("b", stored["b"]) == ()
    assert kept.beginning("c", [*stored["c"], ("c", 3)]) == ("c0", "c1", "c2")
    kept.keep("d", [("d", i) for i in range(6)], ["d"] * 6)
    assert kept.beginning("d", [("d", i) for i in range(6)]) == ()
    assert kept.beginning("c", stored["c"]) == ("c0", "c1", "c2")
    assert kept.beginning("c", stored["c"][:2]) == ()
