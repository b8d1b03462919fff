"""The rows of a source of labelled texts, before anything is made of them: text, label and group, as they stand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ....errors import InputError
from ....settings.contract import LabelledTextContract, TextContract
from ..findings import Findings, some
from ..tables.csv_files import CSV, batches_of_csv, inner_suffix, names_of_csv
from ..tables.database import is_database
from ..tables.frames import is_table, read_frame
from ..text.documents import Reader, by_path
from ..text.files import LINES, PLAIN, files_of
from .built_in import BUILT_IN


class Row(NamedTuple):
    """`place` names it in an error: "line 7" of a file of JSON lines, "row 7" of a table, counted from 1."""

    place: str
    text: object
    label: object
    group: object = None


def rows_of(
    field: str, source: str, contract: LabelledTextContract, findings: Findings, labelled: bool = True
) -> Iterator[Row]:
    """All rows in order. Not `labelled`: there may be no labels, and all are none, as are all groups.

    Raises: InputError naming the file and the line of what cannot be read, or the column that is missing.
    """
    if not labelled:
        contract = contract.model_copy(update={"group": None})
    if source in BUILT_IN:
        yield from _built_in(source, contract)
    elif is_database(source) or (is_table(Path(source)) and inner_suffix(Path(source)) != ".parquet"):
        yield from _of_table(field, source, contract, findings, labelled)
    else:
        yield from _of_files(field, source, contract, findings, labelled)


def _built_in(source: str, contract: LabelledTextContract) -> Iterator[Row]:
    found = BUILT_IN[source]()
    if contract.group is not None and found.groups is None:
        raise InputError("contract.group", contract.group, f"{source} does not say whose its texts are")
    groups = (
        found.groups if contract.group is not None and found.groups is not None else [None] * len(found.texts)
    )
    for number, (text, label, group) in enumerate(
        zip(found.texts, found.labels, groups, strict=True), start=1
    ):
        yield Row(f"text {number}", text, label, group)


def _names(contract: LabelledTextContract, labelled: bool) -> list[str]:
    names = [contract.text, *([contract.label] if labelled else [])]
    return names if contract.group is None else [*names, contract.group]


def _of_table(
    field: str, source: str, contract: LabelledTextContract, findings: Findings, labelled: bool
) -> Iterator[Row]:
    """CSV as text, whatever its cells look like: a group "007" is not 7. Only an empty cell is missing."""
    import pyarrow as pa

    names, path = _names(contract, labelled), Path(source)
    if not is_database(source) and inner_suffix(path) in CSV:
        _say_what_is_there(field, source, names, names_of_csv(field, path, contract), findings)
        types = dict.fromkeys(names, pa.string())
        batches = batches_of_csv(field, path, contract, types, empty=("",))
        columns: Iterator[dict[str, Any]] = (batch.to_pydict() for batch in batches)
    else:
        frame = read_frame(field, source, contract)
        _say_what_is_there(field, source, names, list(frame.columns), findings)
        columns = iter(({name: frame[name].tolist() for name in names},))
    number = 0
    for cells in columns:
        for record in zip(*(cells[name] for name in names), strict=True):
            number += 1
            yield _row(f"row {number}", dict(zip(names, record, strict=True)), contract, labelled)


def _of_files(
    field: str, source: str, contract: LabelledTextContract, findings: Findings, labelled: bool
) -> Iterator[Row]:
    """JSON lines and Parquet, alone, in a folder or in a .zip; without labels also plain text, a line each."""
    read_as = TextContract(field=contract.text, encoding=contract.encoding)
    files = files_of(field, source, list(BUILT_IN), findings)
    for file in files:
        if file.suffix not in (".parquet", *LINES) and (labelled or file.suffix not in PLAIN):
            rule = f"holds no labels; expected {', '.join(LINES)}, .parquet, .csv or another table"
            raise InputError(field, file.shown, f"{file.within}{rule}")
    for file in files:
        reader = Reader(field, file, read_as, findings)
        named = f"{file.name}, " if len(files) > 1 else ""
        if file.suffix in PLAIN:
            for number, line in enumerate("".join(reader.plain()).split("\n"), start=1):
                if line.strip():
                    yield Row(f"{named}line {number}", line, None)
            continue
        for place, record in reader.records(*_names(contract, labelled)):
            yield _row(f"{named}{place}", record, contract, labelled)


def _row(place: str, record: dict[str, Any], contract: LabelledTextContract, labelled: bool) -> Row:
    label = by_path(record, contract.label) if labelled else None
    group = None if contract.group is None else by_path(record, contract.group)
    return Row(place, by_path(record, contract.text), label, group)


def _say_what_is_there(
    field: str, source: str, wanted: list[str], there: list[str], findings: Findings
) -> None:
    for name in wanted:
        if name not in there:
            rule = f"column {name!r} is missing; name the columns in a contract: {some(map(repr, there))}"
            raise InputError(field, source, rule)
    unread = [name for name in there if name not in wanted]
    if unread:
        findings.fact("columns not read", some(map(repr, unread)))
