"""Sources of data that anybody may have written: nothing of them is told, none takes the machine, none does more than
be read."""

from __future__ import annotations

import datetime
import json
import os
import sqlite3
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from pydantic import SecretStr
from support import postgresql
from support.commands import Machine, run_command
from typer.testing import CliRunner

from fedblocks.cli.company_source import source_of
from fedblocks.cli.main import app as cli
from fedblocks.client.data.looking import inspect_source
from fedblocks.client.data.memory import free_memory, used_memory, within_memory
from fedblocks.client.data.one_line import told_in_one_line
from fedblocks.client.data.tables.database import read_database, using_password
from fedblocks.client.home import make_home
from fedblocks.client.importing import Imported, import_data
from fedblocks.errors import InputError, PrivacyError
from fedblocks.settings.contract import FileContract

SECRET, NUMBER = "S3CRET917", 9170917091709170917
CONTRACT = """
kind = "table"
label = "bought"
labels = ["no", "yes"]
missing = "drop"
[numeric]
size = [0, 10]
[categories]
colour = ["red", "blue"]
"""
GOOD: dict[str, list[Any]] = {
    "size": [1.0, 2.0, 3.0],
    "colour": ["red", "blue", "red"],
    "bought": ["yes", "no", "yes"],
}
# One column of another kind than the contract means, each with a value that must not be told.
COLUMNS: dict[str, dict[str, list[Any]]] = {
    "whole numbers without a double": {"size": [1, 2, NUMBER]},
    "beyond 64 bits": {"size": [1, 2, 2**64 - 1]},
    "text among numbers": {"size": [1, 2.5, SECRET]},
    "bytes among numbers": {"size": [1, b"\xff" + SECRET.encode(), 2]},
    "decimals": {"size": [Decimal(NUMBER), Decimal("1e70"), Decimal("NaN")]},
    "times": {"size": [datetime.datetime(2020, 1, 1)] * 3},
    "lists": {"colour": [["red"], ["blue"], [SECRET]]},
    "records": {"colour": [{"a": SECRET}, {"a": "x"}, {"a": "y"}]},
    "records by name": {"size": [{SECRET: 1}, {SECRET: 2}, {SECRET: 3}]},
    "no UTF-8": {"colour": [b"red", b"\xff\xfe" + SECRET.encode(), b"blue"]},
    "labels of every kind": {"bought": ["yes", 1, SECRET]},
    "labels in lists": {"bought": [["yes"], ["no"], [SECRET]]},
    "times of day among text": {"colour": [datetime.time(1, 2), "blue", SECRET]},
    "nothing that is known": {"colour": [SECRET] * 3},
    "infinite": {"size": [float("inf"), 1.0, 2.0]},
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_home(tmp_path / "acme", "acme", epsilon_ceiling=8.0, delta=1e-5).parent


def imported(home: Path, source: str, contract: str = CONTRACT, model: str | None = None) -> Imported:
    file = home.parent / "contract.toml"
    file.write_text(contract)
    told = source_of(source, file, model, None, None)
    return import_data(home, told.source, told.model, told.match_contrast, replace=True)


def as_parquet(path: Path, columns: dict[str, list[Any]]) -> str:
    pd.DataFrame(columns).to_parquet(path / "x.parquet")
    return str(path / "x.parquet")


def as_feather(path: Path, columns: dict[str, list[Any]]) -> str:
    pd.DataFrame(columns).to_feather(path / "x.feather")
    return str(path / "x.feather")


def as_csv(path: Path, columns: dict[str, list[Any]]) -> str:
    pd.DataFrame(columns).to_csv(path / "x.csv", index=False)
    return str(path / "x.csv")


def as_excel(path: Path, columns: dict[str, list[Any]]) -> str:
    book = openpyxl.Workbook()
    for row in (list(columns), *zip(*columns.values(), strict=True)):
        book.active.append([bytes_as_text(cell) for cell in row])
    book.save(path / "x.xlsx")
    return str(path / "x.xlsx")


def bytes_as_text(cell: Any) -> Any:
    return str(cell) if isinstance(cell, bytes | list | dict) else cell


def as_sqlite(path: Path, columns: dict[str, list[Any]]) -> str:
    (path / "x.db").unlink(missing_ok=True)
    with closing(sqlite3.connect(path / "x.db")) as file:
        file.execute("CREATE TABLE orders (size, colour, bought)")
        rows = zip(*columns.values(), strict=True)
        file.executemany("INSERT INTO orders VALUES (?, ?, ?)", [[*map(as_stored, row)] for row in rows])
        file.execute("UPDATE orders SET colour = CAST(colour AS TEXT)")  # bytes that are no text become one
        file.commit()
    return f"sqlite:///{path / 'x.db'}"


def as_stored(cell: Any) -> Any:
    fits = isinstance(cell, bytes | str | float) or (isinstance(cell, int) and cell < 2**63)
    return cell if fits else str(cell)


Writer = Callable[[Path, dict[str, list[Any]]], str]
WRITERS = (as_parquet, as_feather, as_csv, as_excel, as_sqlite)


def written(write: Writer, folder: Path) -> Iterator[str]:
    """The source of each table that this kind of file can hold; nearly all."""
    count = 0
    for columns in COLUMNS.values():
        try:
            source = write(folder, GOOD | columns)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            continue
        count += 1
        yield source
    assert count >= len(COLUMNS) - 5


def check_nothing_is_told(error: InputError, capfd: pytest.CaptureFixture[str]) -> None:
    said = "".join(traceback.format_exception(error)) + "".join(capfd.readouterr())
    assert SECRET not in said
    assert str(NUMBER)[:9] not in said


@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__)
def test_no_value_is_told_of_a_table_that_is_not_as_the_contract_says(
    write: Writer, home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Would catch a library's own error, which quotes the cell: its traceback stands on stderr, and in a journal."""
    contract = (
        CONTRACT if write is not as_sqlite else CONTRACT.replace("label =", 'table = "orders"\nlabel =', 1)
    )
    for source in written(write, tmp_path):
        with pytest.raises(InputError) as caught:  # at least ten rows are wanted
            imported(home, source, contract)
        check_nothing_is_told(caught.value, capfd)
        assert not (home / "data.npz").exists()


@pytest.mark.parametrize("write", [as_parquet, as_excel, as_csv], ids=lambda w: w.__name__)
def test_no_value_is_told_of_a_table_read_as_another_kind(
    write: Writer, home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As above, by the readers of images, series and texts. What `data inspect` shows is for its reader; its errors
    are not."""
    refused = 0
    for source in written(write, tmp_path):
        for contract, model in (
            ('kind = "images"\nlabel = "bought"\nimage = "colour"\n', "digits"),
            ('kind = "series"\ntime = "colour"\n', "forecast-series"),
            ('kind = "text"\nfield = "colour"\n', "ar-text"),
            (None, None),
        ):
            try:
                _ = inspect_source(source) if contract is None else imported(home, source, contract, model)
            except InputError as error:
                refused += 1
                check_nothing_is_told(error, capfd)
    assert refused > 20


def test_an_error_of_a_library_keeps_its_kind_and_our_line_alone() -> None:
    """Would catch the text of an error, and one of the package's own that is hidden."""
    with (
        pytest.raises(InputError, match=r"SOURCE='x'.*ValueError") as caught,
        told_in_one_line("SOURCE", "x"),
    ):
        raise ValueError(SECRET)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    for passes in (PrivacyError("p"), MemoryError(), ModuleNotFoundError(name="pandas"), KeyboardInterrupt()):
        with pytest.raises(type(passes)), told_in_one_line("SOURCE", "x"):
            raise passes


def test_a_query_of_somebody_elses_contract_only_reads(tmp_path: Path) -> None:
    """Real PostgreSQL and SQLite. Would catch several statements at once, of which the first ends the read-only
    transaction, and statements that write another file. Oracle: what the databases hold afterwards."""
    import sqlalchemy as sql

    lite = f"sqlite:///{tmp_path / 'x.db'}"
    engine = sql.create_engine(lite)
    pd.DataFrame(GOOD).to_sql("orders", engine, index=False)
    engine.dispose()
    copy = tmp_path / "copy.db"
    bad = [
        "COMMIT; DROP TABLE orders; SELECT 1 AS size",
        "ROLLBACK; SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE; UPDATE orders SET size = 99; SELECT 1",
        "SELECT 1 AS size; SELECT 2 AS size",
        "DELETE FROM orders RETURNING *",
        "DROP TABLE orders",
        "COPY orders TO STDOUT",
    ]
    own = [
        f"VACUUM INTO '{copy}'", f"ATTACH DATABASE '{copy}' AS other", "PRAGMA query_only = OFF", "PRAGMA table_list",
    ]  # fmt: skip
    for statement in [*bad, *own]:
        with pytest.raises(InputError, match="not readable"):
            read_database("SOURCE", lite, FileContract(query=statement))
    assert not copy.exists()
    query = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 5) SELECT sum(x) AS s FROM c"
    assert read_database("SOURCE", lite, FileContract(query=query))["s"].tolist() == [15]
    assert len(read_database("SOURCE", lite, FileContract(table="orders"))) == 3
    with postgresql.server("pw") as url, using_password(SecretStr("pw")):
        engine = sql.create_engine(sql.make_url(url).set(password="pw"))
        with engine.begin() as connection:
            pd.DataFrame(GOOD).to_sql("orders", connection, index=False)
        for statement in bad:
            with pytest.raises(InputError, match="not readable"):
                read_database("SOURCE", url, FileContract(query=statement))
        found = read_database(
            "SOURCE", url, FileContract(query="SELECT size FROM orders WHERE size > 1::int;")
        )
        assert found["size"].tolist() == [2.0, 3.0]
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT sum(size) FROM orders").scalar() == 6
        engine.dispose()
        other = url.replace("+psycopg", "+psycopg2")
        with pytest.raises(InputError, match="psycopg alone"):
            read_database("SOURCE", other, FileContract(table="orders"))


def a_sheet(path: Path, cells: str) -> str:
    """An Excel file with these rows of XML, as small as one can be."""
    book = openpyxl.Workbook()
    book.save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    sheet = f'<?xml version="1.0"?>{cells.partition("@")[0]}<worksheet xmlns="{space}"><sheetData>'
    parts["xl/worksheets/sheet1.xml"] = f"{sheet}{cells.partition('@')[2]}</sheetData></worksheet>".encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return str(path)


def cell(place: str, text: str) -> str:
    return f'<c r="{place}" t="inlineStr"><is><t>{text}</t></is></c>'


def test_a_sheet_that_asks_for_more_than_it_holds_is_refused_at_once(home: Path, tmp_path: Path) -> None:
    """Would catch 1,500 bytes that ask for 137 GB: cells that lie far apart, entities that grow, zeros."""
    head = f'<row r="1">{cell("A1", "size")}{cell("B1", "colour")}{cell("C1", "bought")}</row>'
    entities = "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    far = f'@{head}<row r="1048576">{cell("XFD1048576", "x")}</row>'
    empty_rows = f'@{head}<row r="2">{cell("XFD2", "x")}</row><row r="1048576"></row>'
    laugh = f'<!DOCTYPE l [<!ENTITY a "{SECRET * 99}">{entities}]>@<row r="1">{cell("A1", "&i;")}</row>'
    zeros = f'@{head}<row r="2">{cell("A2", "0" * (80 << 20))}</row>'
    for text, says in (
        (far, "far from"),
        (empty_rows, "far from"),
        (laugh, "document type"),
        (zeros, "unpack"),
    ):
        before = used_memory()
        with pytest.raises(InputError, match=says) as caught:
            imported(home, a_sheet(tmp_path / "x.xlsx", text))
        assert SECRET not in str(caught.value)
        assert used_memory() - before < 400 << 20
    plain = f'@{head}<row r="2">{cell("A2", "1")}{cell("B2", "red")}{cell("C2", "no")}</row>'
    with pytest.raises(InputError, match="1 row can be used"):
        imported(home, a_sheet(tmp_path / "x.xlsx", plain))


def test_a_limit_of_memory_is_that_of_reading_alone() -> None:
    """Would catch a limit that stays, and one that no allocation meets."""
    free = free_memory()
    assert free is not None
    with pytest.raises(InputError, match="memory that are free"), within_memory("SOURCE", "x"):
        np.empty(2 * free, dtype=np.uint8)
    assert np.empty(2 * used_memory(), dtype=np.uint8).size


@pytest.mark.slow
def test_a_reader_that_asks_for_more_memory_than_is_free_ends_in_one_line(home: Path, tmp_path: Path) -> None:
    """A column of one value, twenty million rows in some kilobytes. Would catch an import for which the system ends
    the largest process, as the agent."""
    rows = 1_000_000
    ones = pa.array(["red"]).take(pa.array(np.zeros(rows, dtype=np.int32))).dictionary_encode()
    table = pa.table({"size": pa.array(np.zeros(rows)), "colour": ones, "bought": ones})
    with parquet.ParquetWriter(tmp_path / "x.parquet", table.schema, compression="zstd") as file:
        for _ in range(20):
            file.write_table(table, row_group_size=rows)
    assert (tmp_path / "x.parquet").stat().st_size < 1 << 20
    (tmp_path / "contract.toml").write_text(CONTRACT)
    words = ["company", "import", "x.parquet", str(home), "--contract", "contract.toml"]
    done = run_command(words, tmp_path, Machine(data=used_memory() + (300 << 20)))
    assert done.exit_code == 2, done.stderr
    assert "memory" in done.stderr
    assert not (home / "data.npz").exists()


def test_a_pipe_or_a_device_among_the_files_is_no_image_and_nobody_waits_for_it(
    home: Path, tmp_path: Path
) -> None:
    """Would catch an import that waits for ever for a pipe that nobody writes to."""
    for label in range(2):
        (tmp_path / f"folder/{label}").mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / f"folder/{label}/{i}.png")
    os.mkfifo(tmp_path / "folder/0/pipe.png")
    (tmp_path / "folder/1/zero.png").symlink_to("/dev/zero")
    contract = 'kind = "images"\nbroken = "{}"\n'
    with pytest.raises(InputError, match="a pipe or a device"):
        imported(home, str(tmp_path / "folder"), contract.format("refuse"), "digits")
    assert imported(home, str(tmp_path / "folder"), contract.format("skip"), "digits").examples == 20
    names = [str(tmp_path / "folder/0/pipe.png"), "/dev/zero", "/dev/stdin", "../../../../etc/passwd"]
    for name in names:
        pd.DataFrame({"file": [name] * 10, "label": [0] * 10}).to_csv(tmp_path / "x.csv", index=False)
        by_name = 'kind = "images"\npath = "file"\nlabel = "label"\n'
        with pytest.raises(InputError, match="not a readable image"):
            imported(home, str(tmp_path / "x.csv"), by_name, "digits")


def test_what_a_source_calls_its_columns_cannot_steer_a_terminal(home: Path, tmp_path: Path) -> None:
    """Would catch a name with an escape sequence, which could clear what was said before it, in what people read."""
    bad = "\x1b[2J\x1b]0;x\x07name\u202e\r\n"
    rows = {name: column * 10 for name, column in GOOD.items()}
    source, contract = tmp_path / "x.parquet", tmp_path / "contract.toml"
    pd.DataFrame(rows | {bad: [1] * 30}).to_parquet(source)
    contract.write_text(CONTRACT)
    for words in (
        ["company", "import", str(source), str(home), "--contract", str(contract), "--held-out", "0"],
        ["data", "inspect", str(source)],
    ):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, done.output
        assert "name" in done.stderr
        assert not {"\x1b", "\x07", "\u202e", "\r"} & set(done.stderr + done.stdout)
    made = json.loads((home / "data.json").read_text())
    assert made["examples"] == 30
