"""Looking at a source before it is used: what is in it, what looks odd, and a contract to start from.

A draft is a guess that a person reads and mends. Its ranges and values are those found in the file: of private rows
they are to be replaced by what the field allows, since a largest value tells of the one row that has it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ....errors import InputError
from ....settings.contract import FileContract, TableContract
from ..draft import Inspection, contract_text, note_sentinels
from ..findings import Findings
from .built_in import BUILT_IN
from .csv_files import CSV, first_lines, inner_suffix, separator_of
from .database import is_database
from .frames import read_frame
from .load import load_table

if TYPE_CHECKING:
    import pandas as pd

MOST_VALUES = 50  # of a column that is taken for a category
MOST_CLASSES = 20
LABELS = ("label", "target", "class", "y", "outcome", "diagnosis", "category", "species")
_DECIMAL_COMMA = re.compile(r"^\s*[-+]?(\d+|\d{1,3}(\.\d{3})+),\d+\s*$")
_DATE = re.compile(r"^\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]\d|\s*$)")


def inspect_table(source: str, table: str | None = None) -> Inspection:
    """A table's columns, and a contract for the tabular family. Raises: InputError where it is no readable table."""
    findings = Findings(source)
    written = how_it_is_written(source, table, findings)
    frame = BUILT_IN[source]() if source in BUILT_IN else read_frame("source", source, written)
    if len(frame) == 0:
        raise InputError("source", source, "no rows")
    findings.fact("rows", f"{len(frame):,}")
    findings.fact("columns", len(frame.columns))
    doubles = int(frame.duplicated().sum())
    if doubles:
        findings.note(f"{doubles:,} of the rows are copies of others; each copy counts as an example")
    raw = _drafted(frame, findings)
    raw = {"kind": "table"} | written.model_dump(exclude_defaults=True) | raw
    example: dict[str, str] = {}
    if raw.get("label") is None:
        findings.note("no column could be the label; name it in the contract")
    elif not raw["numeric"] and not raw["categories"]:
        findings.note("no column is left to read; name some in the contract")
    else:
        example = _example(source, TableContract.model_validate(raw), frame)
    return Inspection(findings, contract_text(raw, findings), example)


def how_it_is_written(source: str, table: str | None, findings: Findings) -> FileContract:
    """Separator, decimal sign and encoding, looked at rather than assumed."""
    if is_database(source):
        return FileContract(table=table)
    path = Path(source)
    if source in BUILT_IN or inner_suffix(path) not in CSV:
        return FileContract()
    if not path.is_file():
        raise InputError("source", source, f"no such file; built-in tables: {', '.join(BUILT_IN)}")
    encoding = encoding_of(path)
    head = first_lines("source", path, encoding)
    separator = separator_of(head)
    cells = [cell for line in head[1:] for cell in line.rstrip("\r\n").split(separator)]
    commas = sum(_DECIMAL_COMMA.match(cell) is not None for cell in cells)
    decimal = "," if separator != "," and commas > 0 else "."
    if encoding is not None:
        findings.note(f"written in {encoding}, not in UTF-8")
    if separator != ",":
        findings.note(f"columns are separated by {separator!r}")
    if decimal == ",":
        findings.note("numbers are written with a decimal comma")
    return FileContract.model_validate({"separator": separator, "decimal": decimal, "encoding": encoding})


def encoding_of(path: Path, most: int = 1 << 20) -> str | None:
    """The likely encoding of a text file; none: UTF-8."""
    from charset_normalizer import from_bytes

    from .csv_files import opened

    with opened(path) as stream:
        raw: bytes = stream.read(most)
    try:
        raw.decode("utf-8-sig", errors="strict" if len(raw) < most else "ignore")
    except UnicodeDecodeError:
        best = from_bytes(raw).best()
        return None if best is None else str(best.encoding)
    return None


def _drafted(frame: pd.DataFrame, findings: Findings) -> dict[str, Any]:
    """The fields of a table's contract."""
    import pandas as pd

    numeric: dict[str, list[float]] = {}
    categories: dict[str, list[str]] = {}
    empty = 0
    for name in frame.columns:
        column = frame[name]
        missing = int(column.isna().sum())
        empty += missing
        hollow = f", {missing:,} empty" if missing else ""
        values = column.dropna()
        if len(values) == 0:
            findings.fact(name, "empty")
        elif pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
            text = _as_text(values)
            kind = _text_kind(text)
            findings.fact(name, f"{kind}{hollow}")
            if kind.startswith("values"):
                categories[name] = sorted(text.unique())
            else:
                findings.note(f"column {name!r} is left out: {kind}")
            if text.map(lambda cell: _DECIMAL_COMMA.match(cell) is not None).mean() > 0.5:
                findings.note(f"column {name!r} holds numbers with a decimal comma: say decimal = ','")
        else:
            low, high = float(values.min()), float(values.max())
            findings.fact(name, f"numbers, {low:g} to {high:g}{hollow}")
            note_sentinels(name, values.to_numpy(dtype=np.float64), findings)
            if not np.isfinite([low, high]).all():
                findings.note(f"column {name!r} is left out: it holds infinite values")
            elif low == high:
                findings.note(f"column {name!r} is left out: it is always {low:g}")
            elif _is_identity(name, values):
                findings.note(
                    f"column {name!r} is left out: a different whole number in every row, as an id has"
                )
            else:
                numeric[name] = [low, high]
    label = _likely_label(frame, numeric, categories)
    raw: dict[str, Any] = {}
    if label is not None:
        findings.note(f"column {label!r} is taken for the label")
        raw["label"] = label
        if label in categories:
            raw["labels"] = categories.pop(label)
        elif _few_whole(frame[label].dropna()):
            raw["labels"] = sorted({f"{v:.17g}" for v in frame[label].dropna()}, key=float)
            numeric.pop(label, None)
        else:
            raw["range"] = numeric.pop(label)
    if empty:
        raw["missing"] = "mark"
    return raw | {"numeric": numeric, "categories": categories}


def _as_text(values: pd.Series[Any]) -> pd.Series[str]:
    import pandas as pd

    if pd.api.types.is_bool_dtype(values):
        return values.map({True: "true", False: "false"})
    return values.astype(str).str.strip()


def _text_kind(text: pd.Series[str]) -> str:
    distinct = text.nunique()
    if (text.map(lambda cell: _DATE.match(cell) is not None)).mean() > 0.9:
        return "dates"
    if distinct == 1:
        return f"always {text.iloc[0][:40]!r}"
    if distinct > MOST_VALUES:
        return f"text, {distinct:,} different"
    shown = ", ".join(f"{value[:20]} {count:,}" for value, count in text.value_counts().head(6).items())
    return f"values {shown}" + (f" and {distinct - 6} more" if distinct > 6 else "")


def _is_identity(name: str, values: pd.Series[Any]) -> bool:
    whole = bool((values == values.round()).all())
    named = re.search(r"(^|_|\b)(id|index|nr|no|number|key)$", name.lower()) is not None
    rising = bool(values.is_monotonic_increasing)
    different = values.nunique() >= 0.95 * len(values)  # a copied row takes its id along
    return whole and different and len(values) > 20 and (named or rising)


def _few_whole(values: pd.Series[Any]) -> bool:
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(values):
        return False
    return bool((values == values.round()).all()) and 2 <= values.nunique() <= MOST_CLASSES


def _likely_label(
    frame: pd.DataFrame, numeric: dict[str, list[float]], categories: dict[str, list[str]]
) -> str | None:
    """By its name, else the last column with few values, else the last number."""
    usable = [name for name in frame.columns if name in numeric or name in categories]
    for name in usable:
        if name.lower() in LABELS:
            return str(name)
    few = [name for name in usable if name in categories and 2 <= len(categories[name]) <= MOST_CLASSES]
    few = few or [name for name in usable if _few_whole(frame[name].dropna())]
    likely = [*usable, *few]
    return str(likely[-1]) if likely else None


def _example(source: str, contract: TableContract, frame: pd.DataFrame) -> dict[str, str]:
    """The first row that has a label, before and after."""
    found = load_table("source", source, contract.model_copy(update={"least_examples": 1}), Findings(source))
    names = [*contract.numeric, *contract.categories]
    row = frame[frame[contract.label].notna()].iloc[0]
    shown = {name: f"{row[name]} -> {float(x):.3g}" for name, x in zip(names, found.inputs[0], strict=False)}
    return shown | {contract.label: f"{row[contract.label]} -> {found.targets[0].item():.3g}"}
