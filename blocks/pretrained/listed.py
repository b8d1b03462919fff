"""Where the converted model of a run lies, written down in the run's folder: settings name it by its digest alone."""

from __future__ import annotations

import json
from pathlib import Path

from ... import atomic_file
from ...errors import InputError, RunError
from . import places

LISTED = "pretrained.json"


def write_listed(folder: Path, digest: str) -> None:
    """Write down where the converted model of this digest lies."""
    there, _ = places.converted(digest)
    atomic_file.write(folder / LISTED, json.dumps({digest: str(there)}, indent=2).encode())


def register_listed(folder: Path) -> None:
    """Make known what was written down in `folder`, if anything was, and if it is still there.

    Raises: RunError where the file is not what was written.
    """
    path = folder / LISTED
    try:
        listed = json.loads(path.read_bytes())
        there = [Path(place) for place in listed.values()]
    except FileNotFoundError:
        return
    except (ValueError, AttributeError, TypeError):
        raise RunError(f"{path}: not a whole JSON object of folders; make it again, or remove it") from None
    for each in there:
        try:
            places.register(each)
        except InputError:
            continue  # gone or changed: whoever needs it is told that no such model is known
