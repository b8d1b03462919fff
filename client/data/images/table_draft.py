"""Which column of a table of images is the label, and which names files, or holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ....errors import InputError
from ....settings.contract import FileContract
from ..findings import Findings, counted
from ..tables.frames import read_frame
from ..tables.inspect import LABELS, MOST_VALUES
from .class_labels import clean, in_order
from .folders import is_picture

if TYPE_CHECKING:
    import pandas as pd


def drafted_table(source: str, written: FileContract, findings: Findings) -> dict[str, Any]:
    """`label` with `labels`, and `path`, `image`, or `channels` of a table of pixels."""
    import pandas as pd

    frame = read_frame("source", source, written)
    if len(frame) == 0:
        raise InputError("source", source, "no rows")
    raw: dict[str, Any] = {}
    for name in frame.columns:
        kind = _kind(frame[name])
        if kind is not None and not raw:
            raw[kind] = str(name)
            words = {"path": "names of image files", "image": "image files"}
            findings.note(f"column {name!r} holds {words[kind]}")
    others = [name for name in frame.columns if name not in raw.values()]
    label = _label(frame[others])
    if label is None:
        raise InputError("source", source, "no column could be the label; name it in a contract: label = ...")
    findings.note(f"column {label!r} is taken for the label")
    raw["label"] = label
    values = frame[label].dropna()
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        raw["labels"] = in_order({clean(str(value).strip()) for value in values})
    if not raw.keys() & {"path", "image"}:
        pixels = len(others) - 1
        raw["channels"] = 1 if round(pixels**0.5) ** 2 == pixels else 3
    elif len(others) > 1:
        findings.note(f"not read: {counted(len(others) - 1, 'other column')}")
    return raw


def _kind(column: pd.Series[Any]) -> str | None:
    cells = column.dropna().head(100).tolist()
    if not cells:
        return None
    if all(isinstance(cell, bytes) or (isinstance(cell, dict) and "bytes" in cell) for cell in cells):
        return "image"
    return "path" if all(isinstance(cell, str) and is_picture(cell.strip()) for cell in cells) else None


def _label(frame: pd.DataFrame) -> str | None:
    """By its name, else the only column with few values."""
    for name in frame.columns:
        if str(name).lower() in (*LABELS, "digit"):
            return str(name)
    few = [str(name) for name in frame.columns if 1 < _distinct(frame[name]) <= MOST_VALUES]
    return few[0] if len(few) == 1 else None


def _distinct(column: pd.Series[Any]) -> int:
    try:
        return int(column.nunique())
    except TypeError:  # cells that are records
        return len(column)
