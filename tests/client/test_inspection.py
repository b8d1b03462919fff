"""`fedblocks data inspect`: what it says of a table, and that its draft is a contract that reads the table."""

from __future__ import annotations

import json
import random
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from fedblocks.cli.main import app
from fedblocks.client.data.findings import Findings
from fedblocks.client.data.tables.inspect import inspect_table
from fedblocks.client.data.tables.load import load_table
from fedblocks.errors import InputError
from fedblocks.settings.contract import TableContract


def shop(folder: Path, rows: int = 60) -> str:
    """A table as a shop's software writes it: semicolons, decimal commas, Windows' encoding, gaps, an id, dates."""
    g = random.Random(0)
    lines = ["Nr;Größe;Farbe;Preis;gekauft;Datum"]
    for i in range(rows):
        colour, bought = g.choice(["rot", "grün", "blau"]), g.choice(["ja", "nein", "ja", ""])
        price = f"{g.randint(1, 900)},{g.randint(10, 99)}"
        lines.append(f"{1000 + i};{g.randint(150, 199)};{colour};{price};{bought};{g.randint(1, 28)}.03.2024")
    path = folder / "shop.csv"
    path.write_bytes("\r\n".join([*lines, lines[-1]]).encode("cp1252"))
    return str(path)


def test_a_shops_export_is_described_and_its_draft_reads_it(tmp_path: Path) -> None:
    """Would catch an id or a date taken for a measure, a comma for a separator, a gap that nobody hears of."""
    source = shop(tmp_path)
    found = inspect_table(source)
    said = "\n".join(found.findings.notes)
    for part in (
        "'Nr' is left out",
        "'Datum' is left out: dates",
        "decimal comma",
        "by ';'",
        "not in UTF-8",
    ):
        assert part in said
    assert "1 of the rows are copies of others" in said
    assert "empty" in found.findings.facts["gekauft"]

    drafted = TableContract.model_validate(tomllib.loads(found.draft))
    assert drafted.label == "gekauft"
    assert drafted.labels == ("ja", "nein")
    assert set(drafted.numeric) == {"Größe", "Preis"}
    assert drafted.categories["Farbe"] == ("blau", "grün", "rot")
    examples = load_table("data", source, drafted, Findings(source))
    frame = pd.read_csv(source, sep=";", decimal=",", encoding="cp1252").dropna(subset=["gekauft"])
    assert len(examples) == len(frame)
    low, high = drafted.numeric["Preis"]
    assert examples.inputs[:, 1].tolist() == pytest.approx(
        (2 * (frame["Preis"] - low) / (high - low) - 1).tolist(), abs=1e-5
    )


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (pd.DataFrame({"x": range(30), "y": ["a", "b"] * 15, "z": 1.0}), "'z' is left out: it is always 1"),
        (pd.DataFrame({"x": [1.5, -999.0, -999.0, 2.0] * 5, "y": ["a", "b"] * 10}), "'x' is -999 in 10 rows"),
        (
            pd.DataFrame({"x": [1.5, float("inf")] * 5, "y": ["a", "b"] * 5}),
            "'x' is left out: it holds infinite values",
        ),
        (
            pd.DataFrame({"name": [f"n{i}" for i in range(99)], "y": ["a"] * 50 + ["b"] * 49}),
            "text, 99 different",
        ),
    ],
)
def test_what_looks_odd_is_said(frame: pd.DataFrame, said: str, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)
    assert said in "\n".join(inspect_table(str(path)).findings.notes)


def test_the_command_writes_a_contract_once(tmp_path: Path) -> None:
    """Would catch a contract that a person has mended overwritten by the next look."""
    source, contract = shop(tmp_path), tmp_path / "contract.toml"
    words = ["data", "inspect", source, "--write", str(contract), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["written"] == str(contract)
    assert contract.read_text("utf-8").startswith("# A draft")
    contract.write_text("mine")
    again = CliRunner().invoke(app, words)
    assert isinstance(again.exception, InputError)
    assert contract.read_text() == "mine"
