"""Files and folders that appear whole: whatever interrupts, a path holds the old content or the new, never a part.

The content goes to a temporary path in the same folder, is forced to disk (fsync), takes its name in one step
(rename(2), or link(2) where nothing may be replaced), and the folder is forced to disk after it. An exception removes
the temporary path; a killed process leaves it, as `.NAME.*.tmp`.

    with replacing(path, mode=OWNER_ONLY) as draft:
        save_file(tensors, draft)
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

# What `open` asks for; the umask narrows it.
_USUAL = 0o666
OWNER_ONLY = 0o600


def write(path: Path, content: bytes, *, mode: int = _USUAL) -> None:
    """Make or replace a file of this content."""
    with replacing(path, mode=mode) as draft:
        draft.write_bytes(content)


@contextmanager
def replacing(path: Path, *, mode: int = _USUAL, sole_writer: bool = False) -> Iterator[Path]:
    """An empty file beside `path`; written to, it is made or replaces `path` once the context is left.

    `mode` is the file's from its first byte on, narrowed by the umask. `sole_writer`: nobody else writes `path`
    meanwhile, so that what killed writers of it have left is removed.
    """
    if sole_writer:
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            leftover.unlink()
    with _draft(path, mode) as draft:
        yield draft
        _sync(draft)
        os.replace(draft, path)
        _sync(path.parent)


@contextmanager
def creating(path: Path, *, mode: int = _USUAL) -> Iterator[Path]:
    """As `replacing`, for a file that must not be there yet.

    Raises: FileExistsError if it is, on entering, or on leaving where another process was first.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    with _draft(path, mode) as draft:
        yield draft
        _sync(draft)
        os.link(draft, path)
        draft.unlink()
        _sync(path.parent)


@contextmanager
def creating_folder(
    path: Path, *, mode: int = 0o777, replace: bool = False, loose: Collection[str] = ()
) -> Iterator[Path]:
    """An empty folder beside `path`; what is put into it appears as the folder `path` once the context is left.

    It is forced to disk as a whole, and nothing in it before; folders in it of a name in `loose`, which can be made
    again, never are. One process at a time may make `path`: what a killed one has left of it is removed first.
    `replace`: so is the old `path`, at the last moment; a folder cannot replace another in one step.

    Raises: OSError where `path` holds anything by then, unless it is to be replaced.
    """
    draft = path.with_name(f".{path.name}.tmp")
    _remove_folder(draft)
    draft.mkdir(mode=mode, parents=True)
    _unfinished.add(draft)
    try:
        yield draft
        _unfinished.discard(draft)
        sync_folder(draft, loose)
        if replace:
            _remove_folder(path)
        draft.rename(path)
        _sync(path.parent)
    finally:
        _unfinished.discard(draft)
        _remove_folder(draft)


def sync_folder(folder: Path, loose: Collection[str] = ()) -> None:
    """Force to disk all that a folder holds, but for folders in it of a name in `loose`."""
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in loose]
        for path in (*(Path(root, name) for name in files), Path(root)):
            _sync(path)


@contextmanager
def _draft(path: Path, mode: int) -> Iterator[Path]:
    """A new file under a name that no other writer of `path` has."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _remove_folder(folder: Path) -> None:
    """What lies there, folder or not; of a link the link alone."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)


# Folders that are being made: what is in them is forced to disk once, when they are whole.
_unfinished: set[Path] = set()


def _sync(path: Path) -> None:
    if not _unfinished.isdisjoint((path, *path.parents)):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
