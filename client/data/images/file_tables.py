"""Images in a table: a row an image, as its pixels, as the name of its file, or as the bytes of its file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ....errors import InputError
from ....settings.contract import ImageContract
from ..findings import Findings, counted, some
from ..tables.database import is_database
from ..tables.frames import read_frame
from .class_labels import Labels, of_values
from .folders import File, open_regular
from .pictures import Unreadable

if TYPE_CHECKING:
    import pandas as pd


def read_pixels(
    field: str, source: str, contract: ImageContract, channels: int, findings: Findings, labelled: bool = True
) -> tuple[npt.NDArray[np.generic], Labels]:
    """Images (N, channels, side, side) in their own range: every column but the label's is a pixel, in row order.

    Not `labelled`: there may be no column of labels, and all are 0.
    """
    import pandas as pd

    frame = _frame(field, source, contract, labelled)
    pixels = frame.drop(columns=[contract.label])
    _refuse_what_is_no_pixel(field, source, pixels)
    side = round((pixels.shape[1] / channels) ** 0.5)
    if side == 0 or side * side * channels != pixels.shape[1]:
        rule = f"{pixels.shape[1]} pixel columns do not form square images"
        raise InputError(field, source, f"{rule} of {counted(channels, 'channel')}")
    # By the type that the column has, nullable or not: a share of 0.4 is no whole number.
    whole = all(pd.api.types.is_integer_dtype(kind) for kind in pixels.dtypes)
    values = pixels.to_numpy(dtype=np.int64 if whole else np.float64)
    labels, _ = _labels(field, source, frame, contract, findings)
    return values.reshape(-1, channels, side, side), labels


def _refuse_what_is_no_pixel(field: str, source: str, pixels: pd.DataFrame) -> None:
    import pandas as pd

    for name in pixels.columns:
        column = pixels[name]
        if pd.api.types.is_bool_dtype(column):
            raise InputError(field, source, f"expected numbers in every column, column {name!r} is boolean")
        if not pd.api.types.is_numeric_dtype(column):
            how = 'name it in a contract: path = "..." where it holds file names, image = "..." the bytes of files'
            raise InputError(field, source, f"expected numbers in every column, {name!r} holds none; {how}")
        if column.isna().any():
            row = int(np.argmax(column.isna().to_numpy())) + 1
            raise InputError(field, source, f"row {row} of column {name!r} is empty, expected a pixel")


def read_files(
    field: str, source: str, contract: ImageContract, findings: Findings, labelled: bool = True
) -> Iterator[tuple[File, int]]:
    """Each row's image file and its label; not `labelled`: as in `read_pixels`."""
    column = contract.path or contract.image or ""
    frame = _frame(field, source, contract, labelled)
    if column not in frame.columns:
        raise InputError(field, source, _missing(column, frame))
    labels, kept = _labels(field, source, frame, contract, findings)
    cells = frame[column].tolist()
    base = Path() if is_database(source) else Path(source).parent
    if contract.path is not None:
        _note_twice(cells, column, findings)
    for row, label in zip(kept, labels, strict=True):
        cell = cells[row]
        if contract.path is not None and isinstance(cell, str) and cell.strip():
            yield _named(base, cell.strip(), row), int(label)
        else:
            yield _stored(cell, row, contract), int(label)


def _named(base: Path, name: str, row: int) -> File:
    def opened() -> IO[bytes]:
        path = base / name
        if not path.exists() and "\\" in name:  # as Windows writes it
            path = base / PureWindowsPath(name).as_posix()
        return open_regular(path)

    return File(f"{name} (row {row + 1})", opened)


def _stored(cell: Any, row: int, contract: ImageContract) -> File:
    """The bytes of a file, alone or as a field of a record, as Hugging Face's data sets have it."""

    def opened() -> IO[bytes]:
        raw = cell.get("bytes") if isinstance(cell, dict) else cell
        if isinstance(raw, (bytes, bytearray, memoryview)):
            return io.BytesIO(raw)
        raise Unreadable("no file name here" if contract.path is not None else "no bytes of a file here")

    return File(f"row {row + 1}", opened)


def _note_twice(cells: list[Any], column: str, findings: Findings) -> None:
    twice = len(cells) - len({str(cell) for cell in cells})
    if twice:
        findings.note(
            f"column {column!r} names a file again in {counted(twice, 'row')}; each counts as an example"
        )


def _frame(field: str, source: str, contract: ImageContract, labelled: bool) -> pd.DataFrame:
    frame = read_frame(field, source, contract)
    if not labelled:
        frame[contract.label] = 0
    if contract.label not in frame.columns:
        raise InputError(field, source, _missing(contract.label, frame))
    if len(frame) == 0:
        raise InputError(field, source, "no rows")
    return frame


def _missing(column: str, frame: pd.DataFrame) -> str:
    return f"column {column!r} is missing; there are {some(map(repr, frame.columns))}"


def _labels(
    field: str, source: str, frame: pd.DataFrame, contract: ImageContract, findings: Findings
) -> tuple[Labels, npt.NDArray[np.int64]]:
    """Labels of the rows that have one, and which rows these are, counted from 0."""
    import pandas as pd

    column = frame[contract.label]
    empty = column.isna().to_numpy()
    files = contract.path is not None or contract.image is not None
    if empty.any():
        if contract.broken == "refuse" or not files:
            row = int(np.argmax(empty)) + 1
            how = '; say broken = "skip" in a contract to leave such rows out' if files else ""
            raise InputError(field, source, f"row {row} of column {contract.label!r} has no label{how}")
        findings.note(f"left out, since without label: {counted(int(empty.sum()), 'row')}")
    kept = np.flatnonzero(~empty)
    column = column[~empty]
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        whole = pd.api.types.is_integer_dtype(column)
        values = column.to_numpy(dtype=np.int64 if whole else np.float64)
    else:
        values = column.to_numpy(dtype=object)

    def place(i: int) -> str:
        return f"row {int(kept[i]) + 1} of column {contract.label!r}"

    return of_values(field, source, values, contract, findings, place), kept
