"""CSV in its many forms, by pyarrow: any separator, decimal sign and encoding that a contract names, and compressed.

Nothing of the form is guessed: what the first lines show against the contract is refused, with what to say in it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from csv import reader as csv_reader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import InputError
from ....settings.contract import FileContract

if TYPE_CHECKING:
    import pyarrow as pa

CSV = (".csv", ".tsv", ".txt")
COMPRESSED = (".gz", ".zst", ".bz2")


def inner_suffix(path: Path) -> str:
    """`.csv` of `a.csv.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_csv(field: str, path: Path, contract: FileContract, columns: list[str] | None = None) -> pa.Table:
    """By pyarrow. A separator or decimal sign other than the contract's is refused by name, and is never guessed."""
    import pyarrow as pa
    from pyarrow import csv

    head = first_lines(field, path, contract.encoding)
    _refuse_other_separator(field, path, head, contract)
    refuse_twice(field, str(path), _names(head, contract))

    def read(threads: bool) -> pa.Table:
        with opened(path) as stream:
            return csv.read_csv(
                stream,
                read_options=csv.ReadOptions(encoding=_encoding(contract), use_threads=threads),
                parse_options=csv.ParseOptions(delimiter=contract.separator, newlines_in_values=True),
                convert_options=csv.ConvertOptions(
                    decimal_point=contract.decimal, include_columns=columns, strings_can_be_null=True,
                    null_values=list(EMPTY), auto_dict_encode=False,
                ),
            )  # fmt: skip

    try:
        return read(threads=True)
    except pa.ArrowInvalid:
        try:
            return read(threads=False)  # which tells the row
        except pa.ArrowInvalid as error:
            raise InputError(field, str(path), _of_a_cell(str(error), {})) from None


def batches_of_csv(
    field: str,
    path: Path,
    contract: FileContract,
    types: dict[str, pa.DataType],
    empty: tuple[str, ...] | None = None,
) -> Iterator[pa.RecordBatch]:
    """The columns of these names and types, some rows at a time, so that never all of the text is in memory.

    `empty`: cells that hold nothing; none: those of `EMPTY`."""
    import pyarrow as pa
    from pyarrow import csv

    if not path.is_file():
        raise InputError(field, str(path), "no such file")
    head = first_lines(field, path, contract.encoding)
    _refuse_other_separator(field, path, head, contract)
    refuse_twice(field, str(path), _names(head, contract))

    # Small, for what is read ahead stays in memory; a row has to fit into a block.
    block = max(1 << 20, 16 * max(map(len, head)))

    def read(threads: bool) -> Iterator[pa.RecordBatch]:
        with opened(path) as stream:
            yield from csv.open_csv(
                stream,
                read_options=csv.ReadOptions(
                    encoding=_encoding(contract), block_size=block, use_threads=threads
                ),
                parse_options=csv.ParseOptions(delimiter=contract.separator, newlines_in_values=True),
                convert_options=csv.ConvertOptions(
                    decimal_point=contract.decimal, column_types=types, include_columns=list(types),
                    strings_can_be_null=True, null_values=list(EMPTY if empty is None else empty),
                ),
            )  # fmt: skip

    try:
        yield from read(threads=True)
    except pa.ArrowKeyError as error:
        missing = str(error).split("'")[1] if "'" in str(error) else "?"
        raise InputError(field, str(path), f"column {missing!r} is missing") from None
    except pa.ArrowInvalid:
        # Only one thread at a time knows the number of the row that it reads.
        try:
            for _ in read(threads=False):
                pass
            rule = "not a readable table"
        except pa.ArrowInvalid as error:
            rule = _of_a_cell(str(error), types)
        raise InputError(field, str(path), rule) from None
    except OSError as error:
        raise InputError(field, str(path), f"not readable ({reason_of(error)})") from None


def _of_a_cell(text: str, types: dict[str, pa.DataType]) -> str:
    """What pyarrow says of a cell or a row, without any value of it."""
    ragged = re.match(r"CSV parse error: Row #(\d+): Expected (\d+) columns, got (\d+)", text)
    if ragged:
        return f"row {int(ragged[1]) - 1} has {ragged[3]} cells, expected {ragged[2]}"
    found = re.match(r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to (\w+)", text)
    if found and int(found[1]) < len(types):
        where = f"row {int(found[2]) - 1} of " if found[2] else ""
        kind = "a number" if found[3] in ("double", "float") else found[3]
        return f"{where}column {list(types)[int(found[1])]!r} is not {kind} everywhere"
    return "not a readable table (its rows differ in length, or are of another encoding)"


_LONGEST_LINE = 1 << 26
EMPTY = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "#N/A")
"""Cells that hold nothing."""


def opened(path: Path) -> Any:
    """The bytes of a file, uncompressed."""
    import pyarrow as pa

    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:  # pyarrow opens no name that is not UTF-8
        codec = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}.get(path.suffix.lower())
        return pa.input_stream(path.open("rb"), compression=codec)
    return pa.input_stream(str(path), compression="detect")


def first_lines(field: str, path: Path, encoding: str | None, most: int = 200) -> list[str]:
    """The first lines of a text file. Raises: InputError where it is no text in this encoding."""
    with opened(path) as stream:
        size = 1 << 18
        raw: bytes = stream.read(size)
        while len(raw) == size and b"\n" not in raw and size < _LONGEST_LINE:
            raw += stream.read(size)
            size *= 2
    whole = len(raw) < size
    try:
        text = raw.decode(encoding or "utf-8-sig", errors="strict" if whole else "ignore")
    except UnicodeDecodeError as error:
        rule = f"not {encoding or 'UTF-8'} (byte {error.start}); name the encoding in a contract"
        raise InputError(field, str(path), rule) from None
    except LookupError:
        raise InputError("contract.encoding", encoding, "no such encoding") from None
    if "\0" in text:
        raise InputError(field, str(path), "holds NUL bytes, so it is no text")
    return text.splitlines(keepends=True)[: most if whole else -1]


def names_of_csv(field: str, path: Path, contract: FileContract) -> list[str]:
    """The names in the first line, as the contract has them separated. Raises: InputError as `first_lines`."""
    if not path.is_file():
        raise InputError(field, str(path), "no such file")
    return _names(first_lines(field, path, contract.encoding), contract)


def separator_of(lines: list[str]) -> str:
    """The separator that cuts most lines into the same number of fields, more than one; a comma where none does.

    One that the first line lacks is none: names stand there, in which no decimal comma does.
    """
    best, cut = ",", (1, 0)
    for separator in (",", ";", "\t", "|"):
        if not lines or separator not in lines[0]:
            continue
        counts = Counter(line.count(separator) + 1 for line in lines if line.strip())
        if not counts:
            continue
        # Among as many fields the one that cuts more lines: decimal commas cut all but the line of names.
        common, times = counts.most_common(1)[0]
        if (common, times) > cut and common > 1 and times >= 0.8 * counts.total():
            best, cut = separator, (common, times)
    return best


def _refuse_other_separator(field: str, path: Path, head: list[str], contract: FileContract) -> None:
    if not head:
        raise InputError(field, str(path), "an empty file")
    likely = separator_of(head)
    named = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
    if contract.separator in head[0] or likely not in head[0] or likely == contract.separator:
        return
    rule = f'its columns are separated by {named[likely]}; say so in a contract: separator = "{likely}"'
    raise InputError(field, str(path), rule.replace("\t", "\\t"))


def _names(head: list[str], contract: FileContract) -> list[str]:
    return next(csv_reader(head[:1], delimiter=contract.separator), [])


def refuse_twice(field: str, source: str, names: list[str]) -> None:
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InputError(field, source, f"column {twice[0]!r} stands twice")


def _encoding(contract: FileContract) -> str:
    return contract.encoding or "utf8"


def reason_of(error: Exception) -> str:
    """The kind of an error; its text may hold values of the table."""
    return error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
