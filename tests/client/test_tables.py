"""Tables as people have them, read by a contract: nothing guessed, nothing in silence."""

from __future__ import annotations

import gzip
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fedblocks.client.data.findings import Findings
from fedblocks.client.data.tables.frames import read_frame
from fedblocks.client.data.tables.load import load_by_company, load_table
from fedblocks.errors import InputError
from fedblocks.settings.contract import FileContract, TableContract

ROWS = [
    ("a", 1.5, "red", "yes"),
    ("b", 2.5, "blue", "no"),
    ("c", 4.0, "red", "yes"),
]
FRAME = pd.DataFrame(ROWS, columns=["id", "size", "colour", "bought"])
# size -> [-1, 1] by the range 0 to 4; red 0, blue 1; no 0, yes 1
INPUTS = torch.tensor([[-0.25, 0.0], [0.25, 1.0], [1.0, 0.0]])
TARGETS = torch.tensor([1, 0, 1])


def contract(**changes: Any) -> TableContract:
    values: dict[str, Any] = {
        "label": "bought", "labels": ("no", "yes"), "numeric": {"size": (0, 4)},
        "categories": {"colour": ("red", "blue")}, "least_examples": 1,
    }  # fmt: skip
    return TableContract.model_validate(values | changes)


def written(folder: Path, text: str, name: str = "t.csv", encoding: str = "utf-8") -> str:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return str(path)


CSV = FRAME.to_csv(index=False)
SEMICOLONS = FRAME.to_csv(index=False, sep=";", decimal=",")


def in_format(folder: Path, kind: str) -> tuple[str, dict[str, Any]]:
    """The same three rows in many formats, and what a contract says of the format."""
    path = folder / f"t.{kind}"
    match kind:
        case "csv":
            return written(folder, CSV), {}
        case "csv.gz":
            path.write_bytes(gzip.compress(CSV.encode()))
        case "csv.zst":
            import pyarrow as pa

            with pa.output_stream(str(path), compression="zstd") as stream:
                stream.write(CSV.encode())
        case "bom.csv":
            path.write_bytes(b"\xef\xbb\xbf" + CSV.encode())
        case "crlf.csv":
            path.write_bytes(CSV.replace("\n", "\r\n").encode())
        case "semicolon.csv":
            return written(folder, SEMICOLONS), {"separator": ";", "decimal": ","}
        case "tab.csv":
            return written(folder, FRAME.to_csv(index=False, sep="\t")), {"separator": "\t"}
        case "utf16.csv":
            path.write_bytes(CSV.encode("utf-16"))
            return str(path), {"encoding": "utf-16"}
        case "quoted.csv":
            path.write_text(FRAME.to_csv(index=False, quoting=1))
        case "parquet":
            FRAME.to_parquet(path)
        case "nullable.parquet":
            FRAME.convert_dtypes().astype({"colour": "category"}).to_parquet(path)
        case "feather":
            FRAME.to_feather(path)
        case "xlsx":
            FRAME.to_excel(path, index=False)
        case "sheet.xlsx":
            with pd.ExcelWriter(path) as writer:
                pd.DataFrame({"other": [1]}).to_excel(writer, index=False, sheet_name="cover")
                FRAME.to_excel(writer, index=False, sheet_name="sales")
            return str(path), {"sheet": "sales"}
        case "sqlite":
            with sqlite3.connect(path) as database:
                FRAME.to_sql("sales", database, index=False)
            return f"sqlite:///{path}", {"table": "sales"}
        case "query":
            with sqlite3.connect(path) as database:
                FRAME.to_sql("sales", database, index=False)
            return f"sqlite:///{path}", {"query": 'select "size", colour, bought from sales'}
    return str(path), {}


FORMATS = [
    "csv", "csv.gz", "csv.zst", "bom.csv", "crlf.csv", "semicolon.csv", "tab.csv", "utf16.csv", "quoted.csv",
    "parquet", "nullable.parquet", "feather", "xlsx", "sheet.xlsx", "sqlite", "query",
]  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    """Would catch a decimal comma read as thousands, a byte order mark in a name, nullable values cut short."""
    source, told = in_format(tmp_path, kind)
    found = load_table("data", source, contract(**told), Findings(source))
    assert torch.allclose(found.inputs, INPUTS)
    assert torch.equal(found.targets, TARGETS)


@pytest.mark.parametrize(
    ("text", "told", "complaint"),
    [
        (SEMICOLONS, {}, "its columns are separated by semicolons"),
        (CSV.replace("size", "colour"), {}, "column 'colour' stands twice"),
        (CSV.replace("size", "length"), {}, "column 'size' is missing"),
        (CSV.replace("2.5", "two"), {}, "row 2 of column 'size' is not a number everywhere"),
        (CSV.replace("2.5", ""), {}, "row 2 of column 'size'.*an empty cell"),
        (CSV.replace("2.5", "inf"), {}, "row 2 of column 'size'.*expected finite numbers"),
        (CSV.replace("blue", "green"), {}, "row 2 of column 'colour'.*not one of the contract's 2 values: red, blue"),
        (CSV.replace("no", "perhaps"), {}, "row 2 of column 'bought'.*not one of the contract's 2 values"),
        ("id,size,colour,bought\n", {}, "0 rows can be used"),
        ("", {}, "an empty file"),
        (CSV + "d,1,red\n", {}, "row 4 has 3 cells, expected 4"),
        (CSV, {"least_examples": 10}, "3 rows can be used, contract.least_examples=10"),
        ("id;size\n" + "a\0;b\n", {"separator": ";"}, "NUL bytes"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(
    text: str, told: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    """Would catch a table loaded with a column shifted, a cell lost or a value invented."""
    source = written(tmp_path, text)
    with pytest.raises(InputError, match=complaint) as caught:
        load_table("data", source, contract(**told), Findings(source))
    assert len(str(caught.value).splitlines()) == 1
    # A cell's value is private.
    assert "two" not in str(caught.value)
    assert "perhaps" not in str(caught.value)


def test_a_wrong_encoding_is_refused_and_a_named_one_read(tmp_path: Path) -> None:
    text = CSV.replace("red", "grün")
    source = written(tmp_path, text, encoding="cp1252")
    told = {"categories": {"colour": ("grün", "blue")}}
    with pytest.raises(InputError, match=r"not UTF-8 .* name the encoding in a contract"):
        load_table("data", source, contract(**told), Findings(source))
    found = load_table("data", source, contract(**told, encoding="cp1252"), Findings(source))
    assert torch.allclose(found.inputs, INPUTS)
    with pytest.raises(InputError, match="no such encoding"):
        load_table("data", source, contract(**told, encoding="klingon"), Findings(source))


def test_missing_values_are_dropped_or_marked_as_told(tmp_path: Path) -> None:
    """Would catch a mean of the data put in the place of a gap, and a dropped row that nobody hears of."""
    text = "size,colour,bought\n1,red,yes\n,blue,no\n3,,yes\n2,red,\n4,green,no\n"
    source, said = written(tmp_path, text), Findings("t")
    dropped = load_table("data", source, contract(missing="drop"), said)
    assert dropped.inputs.tolist() == [[-0.5, 0.0]]
    assert any("without a label" in note for note in said.notes)
    assert any("'size' is empty" in note for note in said.notes)

    marked = contract(missing="mark")
    assert marked.model_fields_told() == {"numeric": 1, "categories": [3, 2], "classes": 2}
    found = load_table("data", source, marked, Findings("t"))
    assert found.inputs.tolist() == [[-0.5, 0, 0], [0.0, 1, 1], [0.5, 2, 0], [1.0, 2, 0]]
    assert found.targets.tolist() == [1, 0, 1, 0]


def test_values_outside_the_range_are_moved_to_its_end_and_said(tmp_path: Path) -> None:
    said = Findings("t")
    found = load_table("data", written(tmp_path, CSV), contract(numeric={"size": (2, 3)}), said)
    assert found.inputs[:, 0].tolist() == [-1.0, 0.0, 1.0]
    assert said.notes == ["values of 'size' outside 2 to 3 are moved to that range"]


def test_a_logarithmic_column_is_scaled_by_its_logarithm(tmp_path: Path) -> None:
    told = contract(numeric={"size": (1, 4)}, logarithmic=("size",))
    found = load_table("data", written(tmp_path, CSV.replace("2.5", "2")), told, Findings("t"))
    assert found.inputs[1:, 0].tolist() == pytest.approx([0.0, 1.0])


def test_a_number_to_predict_is_scaled_by_its_range(tmp_path: Path) -> None:
    told = contract(
        label="size", labels=None, range=(0, 4), numeric={}, categories={"colour": ("red", "blue")}
    )
    found = load_table("data", written(tmp_path, CSV), told, Findings("t"))
    assert found.targets.tolist() == pytest.approx([-0.25, 0.25, 1.0])
    assert found.targets.dtype == torch.float32


def test_labels_may_be_booleans_or_whole_numbers(tmp_path: Path) -> None:
    """Would catch True read as 'True' in one format and as 1 in another."""
    frame = FRAME.assign(bought=[True, False, True], level=[1.0, 2.0, 1.0])
    for name in ("b.parquet", "b.feather"):
        (frame.to_parquet if name.endswith("parquet") else frame.to_feather)(tmp_path / name)
        by_flag = load_table("data", str(tmp_path / name), contract(labels=("false", "true")), Findings("t"))
        assert torch.equal(by_flag.targets, TARGETS)
        by_level = contract(label="level", labels=("2", "1"))
        assert torch.equal(load_table("data", str(tmp_path / name), by_level, Findings("t")).targets, TARGETS)


def test_a_column_may_name_the_company(tmp_path: Path) -> None:
    """Would catch rows given to another company."""
    source = written(tmp_path, CSV)
    examples, parts, names = load_by_company("data", source, contract(company="id"), Findings("t"))
    assert names == ["a", "b", "c"]
    assert [part.tolist() for part in parts] == [[0], [1], [2]]
    assert len(examples) == 3


def test_a_password_never_stands_in_a_source() -> None:
    """It would be kept in the run's settings and shown in errors."""
    with pytest.raises(InputError) as caught:
        read_frame("data", "postgresql+psycopg://me:s3cret@host/db", FileContract(table="t"))
    assert "s3cret" not in str(caught.value)
    assert "PGPASSWORD" in str(caught.value)


def test_no_row_changes_how_another_is_read(tmp_path: Path) -> None:
    """Example-level privacy: would catch any statistic of the data in the scaling."""
    told = contract(numeric={"size": (0, 1000)})
    alone = load_table("data", written(tmp_path, CSV), told, Findings("t"))
    beside = load_table("data", written(tmp_path, CSV + "d,999,red,yes\n", "u.csv"), told, Findings("t"))
    assert torch.equal(alone.inputs, beside.inputs[:3])


def test_a_large_file_is_read_in_pieces(tmp_path: Path) -> None:
    """Would catch a row lost or moved at the edge of a piece, and a row number counted from the piece's start."""
    count = 600_000
    values = np.arange(count) % 997
    frame = pd.DataFrame({"size": values, "colour": "red", "bought": np.where(values % 2, "yes", "no")})
    source = str(tmp_path / "large.csv")
    frame.to_csv(source, index=False)
    assert Path(source).stat().st_size > 1 << 22
    found = load_table("data", source, contract(numeric={"size": (0, 996)}), Findings("t"))
    assert np.allclose((found.inputs[:, 0].numpy() + 1) * 498, values, atol=1e-3)
    assert np.array_equal(found.targets.numpy(), values % 2)


def test_rows_longer_than_a_block_are_read(tmp_path: Path) -> None:
    """Would catch a limit on the length of a row, as pictures in a table have."""
    count = 200_000
    names = [f"c{i}" for i in range(count)]
    lines = [",".join([*names, "bought"])] + [
        ",".join(["12.5"] * count + [word]) for word in ("yes", "no") * 3
    ]
    source = written(tmp_path, "\n".join(lines) + "\n")
    told = contract(numeric={"c0": (0, 25), f"c{count - 1}": (0, 25)}, categories={})
    found = load_table("data", source, told, Findings("t"))
    assert found.inputs.tolist() == [[0.0, 0.0]] * 6
