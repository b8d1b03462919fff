"""Excel files, whose sheets are looked at before they are read: they are archives of XML, and anybody may write one.

Refused: what unpacks as no sheet does, an XML document type (entities that grow without end; no Excel file has one),
and a sheet of a few cells that lie far apart, since all cells between them would be read too.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from ....errors import InputError
from ....settings.contract import FileContract
from .csv_files import EMPTY

if TYPE_CHECKING:
    import pandas as pd

EXCEL = (".xlsx", ".xlsm")
_MOST_GROWTH, _SMALL = 200, 1 << 26
_MOST_EMPTY, _FEW = 100, 4_000_000  # cells for each that holds something, beyond a few
_CELL = re.compile(rb"""\sr\s*=\s*["']([A-Z]{1,3})([0-9]{1,7})["']""")
_ROW = re.compile(rb"""\sr\s*=\s*["']([0-9]{1,7})["']""")
_CHUNK, _OVERLAP = 1 << 20, 64


def read_excel(field: str, path: Path, contract: FileContract) -> pd.DataFrame:
    """The contract's sheet, or the first. Raises: InputError."""
    import pandas as pd

    try:
        import openpyxl  # noqa: F401
    except ModuleNotFoundError:
        raise InputError(field, str(path), "Excel files need openpyxl: pip install openpyxl") from None
    _check(field, path)
    with pd.ExcelFile(path) as file:
        sheets = file.sheet_names
        if contract.sheet is not None and contract.sheet not in sheets:
            there = ", ".join(map(str, sheets))
            raise InputError(field, str(path), f"no sheet {contract.sheet!r}; there are {there}")
        return file.parse(contract.sheet or 0, na_values=list(EMPTY))


def _check(field: str, path: Path) -> None:
    """Raises: InputError naming what is in it; BadZipFile and OSError, which are told by the caller."""
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.file_size > max(_SMALL, _MOST_GROWTH * part.compress_size):
                rule = f"{part.filename!r} in it would unpack to {part.file_size:,} bytes; save it as CSV"
                raise InputError(field, str(path), rule)
            if part.filename.lower().endswith((".xml", ".rels")):
                _check_part(field, path, archive, part)


def _check_part(field: str, path: Path, archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
    cells = columns = rows = 0
    with archive.open(part) as stream:
        before = b""
        while chunk := stream.read(_CHUNK):
            text = before + chunk.replace(b"\0", b"")  # UTF-16 too
            if b"<!DOCTYPE" in text:
                rule = f"{part.filename!r} in it has an XML document type, which Excel does not write"
                raise InputError(field, str(path), rule)
            for letters, row in _CELL.findall(text):
                cells += 1
                columns, rows = max(columns, _number(letters)), max(rows, int(row))
            rows = max(rows, *map(int, _ROW.findall(text)), 0)
            before = text[-_OVERLAP:]
    if rows * columns > max(_FEW, _MOST_EMPTY * cells):
        rule = (
            f"{part.filename!r} in it has {cells:,} cells among {rows:,} rows and {columns:,} columns; remove those "
            "that lie far from the others, or save it as CSV"
        )
        raise InputError(field, str(path), rule)


def _number(letters: bytes) -> int:
    """A is 1, AA is 27."""
    found = 0
    for letter in letters:
        found = 26 * found + letter - ord("A") + 1
    return found
