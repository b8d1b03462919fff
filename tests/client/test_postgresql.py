"""A table in a real PostgreSQL: the same rows as from a file, and no password in what is said or kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from support import postgresql

from fedblocks.client.data.findings import Findings
from fedblocks.client.data.tables.load import load_table
from fedblocks.errors import InputError
from fedblocks.settings.contract import TableContract

ROWS = pd.DataFrame(
    {
        "size": [1.5, None, 4.0],
        "colour": ["red", "blue", "red"],
        "bought": [True, False, True],
        "select": [1, 2, 3],
    }
)


def contract(**changes: object) -> TableContract:
    values: dict[str, object] = {
        "label": "bought", "labels": ("false", "true"), "numeric": {"size": (0, 4), "select": (1, 3)},
        "categories": {"colour": ("red", "blue")}, "missing": "mark", "least_examples": 1, "table": "Sales 2024",
    }  # fmt: skip
    return TableContract.model_validate(values | changes)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgresql.server() as url:
        yield url


@pytest.fixture(scope="module")
def sales(server: str) -> str:
    import sqlalchemy as sql

    engine = sql.create_engine(server)
    with engine.begin() as connection:
        ROWS.to_sql("Sales 2024", connection, index=False)
    engine.dispose()
    return server


def test_a_table_gives_the_rows_of_a_file(sales: str, tmp_path: Path) -> None:
    """Oracle: the same rows from Parquet. Would catch names unquoted, NULL read as 0, booleans as other words."""
    ROWS.to_parquet(tmp_path / "sales.parquet")
    by_file = load_table("data", str(tmp_path / "sales.parquet"), contract(), Findings("f"))
    by_table = load_table("data", sales, contract(), Findings("f"))
    query = contract(table=None, query='select * from "Sales 2024" order by "select"')
    for found in (by_table, load_table("data", sales, query, Findings("f"))):
        assert torch.equal(found.inputs, by_file.inputs)
        assert torch.equal(found.targets, by_file.targets)


def test_faults_are_told_in_one_line_without_the_password(
    sales: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a driver's text, which names hosts, users and statements, or a table dropped by its name."""
    faults = [
        (sales, contract(table="nothing here"), "not readable"),
        (sales, contract(table='x"; drop table "Sales 2024"; --'), "not readable"),
        (sales, contract(table=None), "name the table, or a query"),
        (sales.replace("/postgres?", "/nowhere?"), contract(), "not readable"),
        ("postgresql+psycopg://me@127.0.0.1:1/x", contract(), "not readable"),
        ("postgresql+nodriver://me@/x", contract(), "driver|not a URL"),
    ]
    monkeypatch.setenv("PGPASSWORD", "s3cret")
    for source, told, complaint in faults:
        with pytest.raises(InputError, match=complaint) as caught:
            load_table("data", source, told, Findings("f"))
        assert "s3cret" not in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert len(load_table("data", sales, contract(), Findings("f"))) == 3
