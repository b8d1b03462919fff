"""Tables from files and databases: CSV (plain, .gz, .zst, .bz2), Parquet, Feather, Excel, SQL (see `database`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ....errors import InputError
from ....settings.contract import FileContract
from .csv_files import inner_suffix, read_csv, reason_of, refuse_twice
from .database import is_database, read_database
from .excel import EXCEL, read_excel

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".tsv", ".parquet", ".feather", ".arrow", *EXCEL)


def is_table(path: Path) -> bool:
    """Whether the name is that of a table."""
    return inner_suffix(path) in SUFFIXES


def read_frame(
    field: str, source: str, contract: FileContract, columns: list[str] | None = None
) -> pd.DataFrame:
    """All rows, or those columns of them. Raises: InputError naming `field`, the source and what is wrong with it."""
    if is_database(source):
        return _named_once(field, source, read_database(field, source, contract))
    path = Path(source)
    if not path.is_file():
        raise InputError(field, source, "no such file")
    suffix = inner_suffix(path)
    try:
        if suffix in EXCEL:
            frame = read_excel(field, path, contract)
        elif suffix == ".parquet":
            from pyarrow import parquet

            frame = parquet.read_table(path, columns=columns).to_pandas()
        elif suffix in (".feather", ".arrow"):
            from pyarrow import feather

            frame = feather.read_table(path, columns=columns).to_pandas()
        else:
            frame = read_csv(field, path, contract, columns).to_pandas()
    except (InputError, MemoryError):
        raise
    except OSError as error:
        raise InputError(field, source, f"not readable ({reason_of(error)})") from None
    except Exception as error:  # pyarrow, openpyxl and pandas raise many kinds
        raise InputError(field, source, f"not a readable table ({reason_of(error)})") from None
    if frame.index.name is not None or any(frame.index.names):
        frame = frame.reset_index()
    return _named_once(field, source, frame)


def _named_once(field: str, source: str, frame: pd.DataFrame) -> pd.DataFrame:
    frame.columns = [str(name) for name in frame.columns]
    refuse_twice(field, source, list(frame.columns))
    return frame
