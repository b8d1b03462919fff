"""The table of a sweep: a row for each cell, in one Parquet file that is replaced whole after each.

    rows = read_table(sweep / TABLE)
    pandas.read_parquet(sweep / TABLE)       # the same for a notebook

A column for each axis, by its field's name; the others are the fields of `Row`. What is a mapping or a list in a row
(`by_company`, `by_company_public`, `attacks`) is JSON text in the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ... import atomic_file
from ...errors import InputError
from .grid import Kind

TABLE = "table.parquet"
FORMAT = "1"
_MARK = b"fedblocks.sweep"
_JSON = ("by_company", "by_company_public", "attacks")
Status = Literal["done", "failed"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a cell came to.

    `quality`: the family's `metric` on held-out private examples of all companies; of "alone" the mean over them.
    `by_company`: on what each company held out itself; `by_company_public`: the public model there. `epsilon`: what
    was asked for, none without noise; `epsilon_spent`: the largest of the companies' own ledgers. `attacks`: the
    strongest result of each kind (see `strongest`). `seconds`, `cpu_seconds`, `peak_mib`: of the process that ended
    the cell, public pretraining not counted. Digests in hexadecimal digits.
    """

    cell: str
    kind: Kind
    seed: int
    axes: dict[str, Any]
    status: Status
    reason: str = ""
    epsilon: float | None = None
    epsilon_spent: float | None = None
    epsilon_against_company: float | None = None
    delta: float | None = None
    noise_multiplier: float | None = None
    metric: str = ""
    quality: float | None = None
    quality_public_model: float | None = None
    quality_on_public_data: float | None = None
    by_company: dict[str, float] = field(default_factory=dict)
    by_company_public: dict[str, float] = field(default_factory=dict)
    rounds_done: int | None = None
    audit: str = ""
    attacks: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mib: float | None = None
    digest: str = ""
    plan_digest: str = ""
    model_digest: str = ""
    version: str = ""


_TYPES = {
    "seed": pa.int64(), "rounds_done": pa.int64(), "epsilon": pa.float64(), "epsilon_spent": pa.float64(),
    "epsilon_against_company": pa.float64(), "delta": pa.float64(), "noise_multiplier": pa.float64(),
    "quality": pa.float64(), "quality_public_model": pa.float64(), "quality_on_public_data": pa.float64(),
    "seconds": pa.float64(), "cpu_seconds": pa.float64(), "peak_mib": pa.float64(),
}  # fmt: skip
_COLUMNS = [each.name for each in fields(Row) if each.name != "axes"]


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Replace the table by these rows."""
    raw = [asdict(row) for row in rows]
    columns: dict[str, pa.Array] = {}
    for name in _COLUMNS:
        values = [json.dumps(row[name]) if name in _JSON else row[name] for row in raw]
        columns[name] = pa.array(values, _TYPES.get(name, pa.string()))
    axes = list(dict.fromkeys(axis for row in rows for axis in row.axes))
    for axis in axes:
        columns[axis] = _column([row.axes.get(axis) for row in rows])
    told = {_MARK: json.dumps({"format": FORMAT, "axes": axes}).encode()}
    # Which axes a row has: a baseline lacks some, which is not the same as none.
    columns["axes"] = pa.array([json.dumps(list(row.axes)) for row in rows], pa.string())
    with atomic_file.replacing(path) as draft:
        pq.write_table(pa.table(columns).replace_schema_metadata(told), draft)


def read_table(path: Path) -> list[Row]:
    """The rows; none where there is no table yet. Raises: InputError for another file, or of another version."""
    if not path.is_file():
        return []
    try:
        table = pq.read_table(path)
        told = json.loads((table.schema.metadata or {})[_MARK])
    except (OSError, ValueError, KeyError, pa.ArrowException):
        raise InputError("table", str(path), "not the table of a sweep; move it away") from None
    if told.get("format") != FORMAT:
        made = f"of format {told.get('format')}, expected {FORMAT}"
        rule = f"{made}: made by another version of fedblocks; move it away"
        raise InputError("table", str(path), rule)
    rows = []
    for raw in table.to_pylist():
        values = {name: json.loads(raw[name]) if name in _JSON else raw[name] for name in _COLUMNS}
        rows.append(Row(**values, axes={axis: raw[axis] for axis in json.loads(raw["axes"])}))
    return rows


def _column(values: list[Any]) -> pa.Array:
    """Of one type; values of several become text."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds <= {int, float} and kinds != {int}:
        return pa.array(values, pa.float64())
    if len(kinds) > 1:
        values = [None if value is None else str(value) for value in values]
    return pa.array(values)
