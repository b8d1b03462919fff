"""A folder that its owner alone has access to: a company's home, a coordinator's own folder."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError
from . import private_file

MODE = 0o700


def begin(name: str, folder: Path, first: str, content: str) -> Path:
    """Make `folder`, of mode 700, with a file `first` in it; returns that file's path.

    A folder that is there already is used if its owner alone has access to it. `name`: the argument, in errors.

    Raises: InputError where the file is there already, or the folder is a file or open to others.
    """
    path = folder / first
    there = f"has a {first} already, which is left as it is"
    if os.path.lexists(path):
        raise InputError(name, str(folder), there)
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise InputError(name, str(folder), "is a file, expected a folder")
        folder.mkdir(parents=True, mode=MODE)
        folder.chmod(MODE)  # whatever the umask
    elif folder.stat().st_mode & 0o077:
        rule = f"this folder is open to others; make it your own first: chmod 700 {folder}"
        raise InputError(name, str(folder), rule)
    try:
        private_file.create(path, content.encode())
    except FileExistsError:
        raise InputError(name, str(folder), there) from None
    return path
