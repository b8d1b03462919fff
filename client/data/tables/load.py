"""Rows of a table, as a contract says what its columns mean.

Numbers are scaled from the contract's range to [-1, 1], categories become codes. No statistic of the data enters:
a mean or a largest value of the private rows would let one example change how all the others are read, which
example-level privacy does not allow for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ....blocks.examples import Examples
from ....errors import InputError
from ....settings.contract import TableContract
from ..findings import Findings, counted, some
from .built_in import BUILT_IN
from .csv_files import CSV, batches_of_csv, inner_suffix, names_of_csv
from .database import is_database
from .frames import read_frame

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Piece:
    """Some rows as numbers: inputs (n, columns), targets (n,), and which company each belongs to, if that is told."""

    inputs: Rows
    targets: npt.NDArray[np.float32]
    companies: npt.NDArray[np.str_] | None


def load_table(field: str, source: str, contract: TableContract, findings: Findings) -> Examples:
    """inputs (N, numbers + categories) float32, targets (N,) int64 of classes or float32 in [-1, 1]."""
    inputs, targets, _ = gathered(_pieces(field, source, contract, findings))
    return _examples(field, source, inputs, targets, contract, findings)


def load_by_company(
    field: str, source: str, contract: TableContract, findings: Findings
) -> tuple[Examples, list[npt.NDArray[np.int64]], list[str]]:
    """As `load_table`; and by the column that the contract calls `company`, each company's rows and its name."""
    inputs, targets, companies = gathered(_pieces(field, source, contract, findings))
    examples = _examples(field, source, inputs, targets, contract, findings)
    assert companies is not None
    names, whose = np.unique(companies, return_inverse=True)
    return examples, [np.flatnonzero(whose == i) for i in range(len(names))], [str(name) for name in names]


def _examples(
    field: str,
    source: str,
    inputs: Rows,
    targets: npt.NDArray[np.float32],
    contract: TableContract,
    findings: Findings,
) -> Examples:
    findings.fact("rows", f"{len(inputs):,}")
    for reason, rows in findings.left_out.items():
        findings.note(f"{counted(rows, 'row')} left out: {reason}")
    if contract.labels is not None:
        counts = np.bincount(targets.astype(np.int64), minlength=len(contract.labels))
        shown = ", ".join(f"{label} {count:,}" for label, count in zip(contract.labels, counts, strict=True))
        findings.fact("classes", shown)
    if len(inputs) < contract.least_examples:
        rule = f"{counted(len(inputs), 'row')} can be used, contract.least_examples={contract.least_examples}"
        raise InputError(field, source, rule)
    found = torch.from_numpy(targets)
    return Examples(torch.from_numpy(inputs), found if contract.labels is None else found.long())


def rows_as_read(field: str, source: str, contract: TableContract) -> pa.Table:
    """The columns that the contract names, every row, before anything is scaled or left out."""
    import pyarrow as pa

    return pa.Table.from_batches(list(_batches(field, source, contract, Findings(source))))


def gathered(
    pieces: Iterator[Piece],
) -> tuple[Rows, npt.NDArray[np.float32], npt.NDArray[np.str_] | None]:
    """All pieces in one array, which grows in place, so that the peak is little more than what is kept."""
    inputs, targets = np.empty((0, 0), np.float32), np.empty(0, np.float32)
    companies: list[npt.NDArray[np.str_]] = []
    count = 0
    for piece in pieces:
        rows, width = piece.inputs.shape
        if rows == 0:  # all of it was left out
            continue
        if count + rows > len(targets):
            room = max(count + rows, len(targets) * 5 // 4)
            # A large array is moved by the operating system, page by page, and not copied.
            inputs.resize((room, width), refcheck=False)
            targets.resize(room, refcheck=False)
        inputs[count : count + rows], targets[count : count + rows] = piece.inputs, piece.targets
        count += rows
        companies += [] if piece.companies is None else [piece.companies]
    inputs.resize((count, inputs.shape[1]), refcheck=False)
    targets.resize(count, refcheck=False)
    return inputs, targets, np.concatenate(companies) if companies else None


def _pieces(field: str, source: str, contract: TableContract, findings: Findings) -> Iterator[Piece]:
    first = 1
    for batch in _batches(field, source, contract, findings):
        yield _Reading(field, source, contract, findings, first).piece(batch)
        first += batch.num_rows


def _say_what_is_not_read(there: list[str], read: list[str], findings: Findings) -> None:
    unread = [name for name in there if name not in read]
    if unread:
        findings.fact("columns not read", some(map(repr, unread)))


def _batches(
    field: str, source: str, contract: TableContract, findings: Findings
) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    columns = [contract.label, *contract.numeric, *contract.categories]
    columns += [] if contract.company is None else [contract.company]
    text = (
        {contract.label, *contract.categories, contract.company}
        if contract.labels
        else {*contract.categories}
    )
    if source not in BUILT_IN and not is_database(source) and inner_suffix(Path(source)) in CSV:
        types = {name: pa.string() if name in text else pa.float64() for name in columns}
        _say_what_is_not_read(names_of_csv(field, Path(source), contract), columns, findings)
        yield from batches_of_csv(field, Path(source), contract, types)
        return
    frame = BUILT_IN[source]() if source in BUILT_IN else read_frame(field, source, contract)
    for name in columns:
        if name not in frame.columns:
            raise InputError(field, source, f"column {name!r} is missing; there are {some(frame.columns)}")
    _say_what_is_not_read(list(frame.columns), columns, findings)
    yield from batches_of(field, frame, columns)


def batches_of(field: str, frame: pd.DataFrame, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """These columns of a table that is in memory."""
    import pyarrow as pa

    yield from pa.table({name: _column(field, frame[name]) for name in columns}).to_batches()


def _plain(kind: pa.DataType) -> str:
    """The kind of a column; of a record without the names in it, which may be data."""
    return str(kind).partition("<")[0]


def _column(field: str, cells: pd.Series[Any]) -> pa.Array:
    """One column as pyarrow has it. Raises: InputError without a value, where its cells are of several kinds."""
    import pyarrow as pa

    try:
        return pa.array(cells, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        rule = "its cells are of several kinds (text, numbers, times, bytes), or a number is too large; mend them"
    raise InputError(field, f"column {cells.name!r}", rule)


class _Reading:
    """One batch by the contract; `first` is the number of its first row in the source, counted from 1."""

    def __init__(
        self, field: str, source: str, contract: TableContract, findings: Findings, first: int
    ) -> None:
        self.field, self.source, self.contract = field, source, contract
        self.findings, self.first = findings, first

    def piece(self, batch: pa.RecordBatch) -> Piece:
        c = self.contract
        keep = np.ones(batch.num_rows, dtype=bool)
        columns: list[Rows] = []
        marks: list[Rows] = []
        for name, limits in c.numeric.items():
            values = self._numbers(batch, name)
            missing = np.isnan(values)
            self._missing(name, missing, keep)
            columns.append(self._scaled(name, values, limits))
            marks.append(missing.astype(np.float32))
        for name, known in c.categories.items():
            columns.append(self._codes(batch, name, known, keep))
        if c.missing == "mark":
            columns += marks
        targets = self._targets(batch, keep)
        inputs = np.stack(columns, axis=1)
        companies = None
        if c.company is not None:
            companies = np.array(self._text(batch, c.company), dtype=np.str_)[keep]
        return Piece(inputs[keep], targets[keep], companies)

    def _missing(self, name: str, missing: npt.NDArray[np.bool_], keep: npt.NDArray[np.bool_]) -> None:
        """Refuse or leave out rows where the column holds nothing."""
        if not missing.any():
            return
        if self.contract.missing == "refuse":
            row = self.first + int(np.argmax(missing))
            rule = 'an empty cell; fill it, or say missing = "drop" or "mark" in the contract'
            raise InputError(self.field, f"row {row} of column {name!r}", rule)
        if self.contract.missing == "drop":
            self._leave_out(f"column {name!r} is empty", missing, keep)

    def _leave_out(self, reason: str, rows: npt.NDArray[np.bool_], keep: npt.NDArray[np.bool_]) -> None:
        """Each row counts once, for the first reason."""
        self.findings.leave_out(reason, int((rows & keep).sum()))
        keep &= ~rows

    def _numbers(self, batch: pa.RecordBatch, name: str) -> npt.NDArray[np.float64]:
        """NaN where a cell is empty. Raises: InputError with row and column where it is no number."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = batch.column(name)
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        t = pa.types
        if not any(
            is_kind(column.type) for is_kind in (t.is_integer, t.is_floating, t.is_decimal, t.is_null)
        ):
            raise InputError(self.field, f"column {name!r}", f"expected numbers, found {_plain(column.type)}")
        # Not "safe": the nearest double stands for a whole number that has none. It is moved to the range anyway.
        real = column.cast(pa.float64(), safe=False)
        values = pc.fill_null(real, float("nan")).to_numpy(zero_copy_only=False)
        infinite = np.isinf(values)
        if infinite.any():
            row = self.first + int(np.argmax(infinite))
            raise InputError(self.field, f"row {row} of column {name!r}", "expected finite numbers")
        return np.asarray(values, dtype=np.float64)

    def _scaled(self, name: str, values: npt.NDArray[np.float64], limits: tuple[float, float]) -> Rows:
        low, high = limits
        outside = int(((values < low) | (values > high)).sum())
        if outside:
            self.findings.note(f"values of {name!r} outside {low:g} to {high:g} are moved to that range")
        values = np.clip(values, low, high)
        if name in self.contract.logarithmic:
            values, low, high = np.log(values), float(np.log(low)), float(np.log(high))
        scaled = (values - low) * (2 / (high - low)) - 1
        return np.nan_to_num(scaled, nan=0.0).astype(np.float32)

    def _text(self, batch: pa.RecordBatch, name: str) -> list[str | None]:
        import pyarrow as pa

        column = batch.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_floating(column.type):
            return [None if v is None or v != v else f"{v:.17g}" for v in column.to_pylist()]
        return [None if v is None else v.strip() for v in self._strings(name, column).to_pylist()]

    def _strings(self, name: str, column: pa.Array) -> pa.Array:
        """The cells as text. Raises: InputError where they are bytes of no text, lists and the like."""
        import pyarrow as pa

        try:
            return column.cast(pa.string())
        except pa.ArrowException:
            rule = f"expected text, found {_plain(column.type)}"
        raise InputError(self.field, f"column {name!r}", rule)

    def _index(self, batch: pa.RecordBatch, name: str, known: tuple[str, ...]) -> npt.NDArray[np.int64]:
        """The place of each cell in `known`; -1 empty, -2 not among them."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = batch.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_floating(column.type):
            column = pa.array(self._text(batch, name), pa.string())
        text = pc.utf8_trim_whitespace(self._strings(name, column))
        found = pc.fill_null(pc.index_in(text, pa.array(known)), -2).to_numpy(zero_copy_only=False)
        empty = pc.or_kleene(pc.is_null(text), pc.equal(text, "")).to_numpy(zero_copy_only=False)
        return np.where(empty.astype(bool), -1, found).astype(np.int64)

    def _codes(
        self, batch: pa.RecordBatch, name: str, known: tuple[str, ...], keep: npt.NDArray[np.bool_]
    ) -> Rows:
        codes = self._index(batch, name, known)
        self._unknown(name, codes, known)
        self._missing(name, codes < 0, keep)
        return np.where(codes < 0, len(known) if self.contract.missing == "mark" else 0, codes).astype(
            np.float32
        )

    def _unknown(self, name: str, codes: npt.NDArray[np.int64], known: tuple[str, ...]) -> None:
        unknown = codes == -2
        if not unknown.any():
            return
        if self.contract.missing == "refuse":
            row = self.first + int(np.argmax(unknown))
            rule = f"not one of the contract's {counted(len(known), 'value')}: {some(known)}"
            raise InputError(self.field, f"row {row} of column {name!r}", rule)
        self.findings.note(f"values of {name!r} that the contract does not list count as empty")

    def _targets(self, batch: pa.RecordBatch, keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        c = self.contract
        if c.labels is not None:
            codes = self._index(batch, c.label, c.labels)
            self._unknown(c.label, codes, c.labels)
            missing = codes < 0
        else:
            values = self._numbers(batch, c.label)
            missing = np.isnan(values)
        if missing.any() and c.missing == "refuse":
            self._missing(c.label, missing, keep)
        if missing.any():
            self._leave_out(f"without a label in column {c.label!r}", missing, keep)
        if c.labels is not None:
            return codes.astype(np.float32)
        assert c.range is not None
        return self._scaled(c.label, values, c.range)
