"""Which kind of data a source is likely to be, and looking at it as that kind."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...errors import InputError
from .draft import Inspection
from .images.folders import is_picture
from .images.inspect import inspect_images
from .images.known_files import is_image_file, training_files
from .images.load import BUILT_IN as BUILT_IN_IMAGES
from .labelled_text.built_in import BUILT_IN as BUILT_IN_LABELLED
from .labelled_text.inspect import inspect_labelled_text, is_labelled
from .memory import within_memory
from .one_line import told_in_one_line
from .series.built_in import BUILT_IN as BUILT_IN_SERIES
from .series.inspect import inspect_series
from .series.times import columns_of_times
from .tables.built_in import BUILT_IN as BUILT_IN_TABLES
from .tables.csv_files import inner_suffix
from .tables.database import is_database
from .tables.frames import is_table, read_frame
from .tables.inspect import how_it_is_written, inspect_table
from .text.built_in import BUILT_IN as BUILT_IN_TEXTS
from .text.files import SUFFIXES as TEXTS
from .text.inspect import inspect_text

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["table", "images", "text", "labelled-text", "series"]
KINDS: dict[str, Callable[[str], Inspection]] = {
    "table": inspect_table,
    "images": inspect_images,
    "text": inspect_text,
    "labelled-text": inspect_labelled_text,
    "series": inspect_series,
}
_BUILT_IN: dict[Kind, object] = {
    "table": BUILT_IN_TABLES,
    "images": BUILT_IN_IMAGES,
    "text": BUILT_IN_TEXTS,
    "labelled-text": BUILT_IN_LABELLED,
    "series": BUILT_IN_SERIES,
}
_LONG_CELL = 200  # characters, on average, of a column that is text rather than a name


def inspect_source(source: str, kind: Kind | None = None, table: str | None = None) -> Inspection:
    """Look at a source as this kind of data, or as what it seems to be, which is then said.

    Raises: InputError where it cannot be read, or where its kind has to be told.
    """
    with within_memory("source", source), told_in_one_line("source", source):
        chosen = kind or likely_kind(source, table)
        if chosen in ("table", "series") and table is not None:
            found = (inspect_table if chosen == "table" else inspect_series)(source, table)
        else:
            found = KINDS[chosen](source)
    if kind is None:
        found.findings.fact("looked at as", f"{chosen}; another kind is told by --kind")
    return found


def likely_kind(source: str, table: str | None = None) -> Kind:
    """By name, what the files in a folder or an archive are, and whether a table has times or long texts."""
    for kind, sets in _BUILT_IN.items():
        if isinstance(sets, dict) and source in sets:
            return kind
    path = Path(source)
    if is_database(source):
        return _of_table(source, table)
    if path.is_dir():
        pictured = training_files(path) or any(is_picture(file.name) for file in path.glob("*/*"))
        return "images" if pictured else "text"
    if not path.is_file():
        known = ", ".join(name for sets in _BUILT_IN.values() if isinstance(sets, dict) for name in sets)
        raise InputError("source", source, f"no such file or folder; built-in sets: {known}")
    if path.suffix.lower() == ".zip" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return "images" if any(map(is_picture, archive.namelist())) else "text"
    if path.suffix.lower() == ".npz" or is_image_file(path) or is_picture(path.name):
        return "images"
    if is_table(path):
        return _of_table(source, table)
    if path.suffix.lower() in TEXTS or inner_suffix(path) in TEXTS:
        return "labelled-text" if is_labelled(source) else "text"
    raise InputError(
        "source", source, f"of no kind that is known by its name; say --kind {' or '.join(KINDS)}"
    )


def _of_table(source: str, table: str | None) -> Kind:
    from .findings import Findings

    frame = read_frame("source", source, how_it_is_written(source, table, Findings(source)))
    texts = [name for name in frame.columns if frame[name].map(type).eq(str).all() and len(frame)]
    if any(frame[name].head(100).str.len().mean() > _LONG_CELL for name in texts):
        return "labelled-text" if is_labelled(source) else "text"
    if any(frame[name].map(type).eq(bytes).any() for name in frame.columns):
        return "images"
    return "series" if any(_tell_apart(frame, names) for names in columns_of_times(frame)) else "table"


def _tell_apart(frame: pd.DataFrame, names: Sequence[str]) -> bool:
    """Whether these times are nearly all different, as those of a series are; a date of birth is not."""
    return len(frame[list(names)].drop_duplicates()) > 0.9 * len(frame)
