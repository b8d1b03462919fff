"""The table of a sweep: what is written is read, by us and by pandas; another version is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from fedblocks.errors import InputError
from fedblocks.experiments.sweep.grid import Grid
from fedblocks.experiments.sweep.scheduler import ASKED, Sweep
from fedblocks.experiments.sweep.table import Row, read_table, write_table

ROWS = [
    Row(
        cell="a", kind="run", seed=0, axes={"privacy.epsilon": 1.0, "model.blocks": 3}, status="done", epsilon=1.0,
        quality=0.5, attacks=[{"statement": "membership", "value": 0.6}], digest="0a",
    ),
    Row(
        cell="b", kind="run", seed=1, axes={"privacy.epsilon": None, "model.blocks": 3}, status="failed",
        reason="no\nroom", digest="0b",
    ),
    Row(
        cell="c", kind="alone", seed=1, axes={"model.blocks": 3}, status="done", quality=0.25,
        by_company={"company-0": 0.5, "company-1": 0.0}, digest="0c",
    ),
]  # fmt: skip


def test_rows_come_back_as_they_were_and_pandas_reads_the_same(tmp_path: Path) -> None:
    """Would catch a baseline that gets an axis which it does not have, or a column that only we can read."""
    path = tmp_path / "table.parquet"
    write_table(path, ROWS)
    assert read_table(path) == ROWS
    frame = pd.read_parquet(path)
    assert list(frame["quality"].fillna(-1)) == [0.5, -1, 0.25]
    assert frame["privacy.epsilon"].isna().tolist() == [False, True, True]
    assert frame["model.blocks"].tolist() == [3, 3, 3]
    assert json.loads(frame["by_company"][2]) == ROWS[2].by_company


@pytest.mark.parametrize("kind", ["other version", "other table", "no table"])
def test_a_table_that_is_not_ours_is_refused_and_left_alone(kind: str, tmp_path: Path) -> None:
    """Would catch results of another version that are mixed with new ones, or overwritten."""
    grid = Grid.of("digits", ["privacy.epsilon=1,2"])
    path = Sweep.of(grid, tmp_path).folder / "table.parquet"
    path.parent.mkdir()
    write_table(path, ROWS)
    if kind == "other version":
        mark = {b"fedblocks.sweep": b'{"format": "0", "axes": []}'}
        pq.write_table(pq.read_table(path).replace_schema_metadata(mark), path)
    elif kind == "other table":
        pd.DataFrame({"a": [1]}).to_parquet(path)
    else:
        path.write_bytes(b"PAR1, it says")
    before = path.read_bytes()
    with pytest.raises(InputError, match="table="):
        Sweep.of(grid, tmp_path)
    assert path.read_bytes() == before


def test_a_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    """Would catch a sweep that goes on in a folder whose layout it does not know."""
    grid = Grid.of("digits", ["privacy.epsilon=1,2"])
    folder = Sweep.of(grid, tmp_path).folder
    folder.mkdir()
    (folder / ASKED).write_text('{"format": "2"}')
    with pytest.raises(InputError, match="another version"):
        Sweep.of(grid, tmp_path)
