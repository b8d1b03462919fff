"""Predictions as files: .csv, .npz or .json, by the file's name; for their owner alone, as the inputs may be."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np

from .. import atomic_file
from ..client.prediction import Predictions
from ..errors import InputError
from .ledger_tables import harmless

_SUFFIXES = (".csv", ".npz", ".json")


def check_place(to: Path) -> None:
    """Raises: InputError for a file that is there already, or of a kind that is not written."""
    if to.suffix.lower() not in _SUFFIXES:
        raise InputError("--to", str(to), f"expected a name that ends in {', '.join(_SUFFIXES)}")
    if os.path.lexists(to):
        raise InputError("--to", str(to), "exists already; name another, or remove it")
    if not to.parent.is_dir():
        raise InputError("--to", str(to), "no such folder; make it first")


def write(found: Predictions, to: Path) -> None:
    """Make the file; its rows are the predictions'."""
    with atomic_file.creating(to, mode=atomic_file.OWNER_ONLY) as draft:
        if to.suffix.lower() == ".npz":
            with draft.open("wb") as file:
                np.savez_compressed(file, **cast(dict[str, Any], found.columns))
        elif to.suffix.lower() == ".json":
            draft.write_text(json.dumps({"kind": found.kind, "predictions": list(found.records())}), "utf-8")
        else:
            with draft.open("w", encoding="utf-8", newline="") as text:
                write_csv(found, text)


def write_csv(found: Predictions, file: TextIO) -> None:
    """A row a prediction; text that a spreadsheet could take for a formula is escaped, as in exported ledgers."""
    flat = found.flat()
    writer = csv.writer(file)
    writer.writerow([harmless(name) for name in flat])
    columns = [values.tolist() for values in flat.values()]
    writer.writerows([harmless(value) for value in row] for row in zip(*columns, strict=True))
