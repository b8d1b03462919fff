"""A folder of class folders, or a .zip of one: what is in it, and which files are passed over."""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from ....errors import InputError
from ..findings import Findings, counted, some
from .class_labels import clean, in_order
from .pictures import SUFFIXES, Unreadable

MOST_UNPACKED = 1 << 28  # bytes of one file of a .zip
# What systems leave in folders, beside names that begin with a dot.
_STRANGERS = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information",
    "icon\r",
}  # fmt: skip


@dataclass(frozen=True)
class File:
    """An image file; `name` is relative to its source, `open` may raise OSError or Unreadable."""

    name: str
    open: Callable[[], IO[bytes]]


@dataclass
class Listing:
    """Files by their path relative to the source, and all folders directly in it."""

    files: list[tuple[tuple[str, ...], File]] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    hidden: int = 0

    def below(self, folder: str) -> Listing:
        inner = [(parts[1:], file) for parts, file in self.files if parts[0] == folder]
        return Listing(inner, {parts[0] for parts, _ in inner if len(parts) > 1}, self.hidden)


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _STRANGERS


def open_regular(path: Path) -> IO[bytes]:
    """A file's bytes. A pipe or a device, which may have no end or never begin, is Unreadable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable("a folder, a pipe or a device, expected a file")
    return os.fdopen(descriptor, "rb")


def is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


@contextmanager
def listing(field: str, path: Path) -> Iterator[Listing]:
    """Of a folder, or of a .zip, whose files can be opened while this is. Raises: InputError where it is neither."""
    if path.is_dir():
        yield _of_folder(field, path)
        return
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "damaged or cut off"
        raise InputError(field, str(path), f"not a readable .zip file ({reason})") from None
    with archive:
        yield _of_zip(field, path, archive)


def _of_folder(field: str, path: Path) -> Listing:
    """Down to what lies in the folders of a class folder, which is not read but said."""

    def fail(error: OSError) -> None:
        raise InputError(field, str(path), f"{error.filename!r} is not readable ({error.strerror})") from None

    found = Listing()
    for place, folders, files in os.walk(path, onerror=fail, followlinks=True):
        above = Path(place).relative_to(path).parts
        found.hidden += sum(map(is_hidden, [*folders, *files]))
        folders[:] = [name for name in folders if not is_hidden(name)] if len(above) < 2 else []
        if not above:
            found.folders.update(folders)
        for name in files:
            if not is_hidden(name):
                full = Path(place, name)
                shown = clean("/".join((*above, name)))
                found.files.append(((*above, name), File(shown, lambda full=full: open_regular(full))))  # type: ignore[misc]
    return found


def _of_zip(field: str, path: Path, archive: zipfile.ZipFile) -> Listing:
    found = Listing()
    for entry in archive.infolist():
        parts = tuple(part for part in entry.filename.replace("\\", "/").split("/") if part)
        if not parts:
            continue
        if any(map(is_hidden, parts)):
            found.hidden += 1
            continue
        if entry.flag_bits & 1:
            raise InputError(field, str(path), "an encrypted .zip file; unpack it first")
        if len(parts) > 1 or entry.is_dir():
            found.folders.add(parts[0])
        if not entry.is_dir():
            file = File(clean("/".join(parts)), lambda entry=entry: _unpacked(archive, entry))  # type: ignore[misc]
            found.files.append((parts, file))
    return found


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> IO[bytes]:
    """Never more than its header says, and that is never more than MOST_UNPACKED."""
    if entry.file_size > MOST_UNPACKED:
        raise Unreadable(f"{entry.file_size:,} bytes when unpacked, at most {MOST_UNPACKED:,} are read")
    try:
        with archive.open(entry) as file:
            return io.BytesIO(file.read())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError):
        raise Unreadable("damaged in the .zip file, or packed in a way that is not read") from None


def classes_of(field: str, path: Path, found: Listing, findings: Findings) -> dict[str, list[File]]:
    """The images of each class folder, classes and files in order. What is not read is noted.

    Raises: InputError where there is none, or a class has none.
    """
    source = str(path)
    found = _unwrapped(path, found, findings)
    if found.hidden:
        findings.note(f"passed over: {counted(found.hidden, 'hidden name')}")
    loose = [file for parts, file in found.files if len(parts) == 1]
    if not found.folders:
        images = sum(is_picture(file.name) for file in loose)
        rule = f"no images ({', '.join(SUFFIXES)}) in class folders here"
        if images:
            rule = f"{counted(images, 'image')} and no class folder; put each into a folder of its class"
        raise InputError(field, source, rule)
    if loose:
        findings.note(f"not read: {counted(len(loose), 'file')} beside the class folders ({_kinds(loose)})")
    classes: dict[str, list[File]] = {}
    for folder in found.folders:
        name = clean(folder)
        if name in classes:
            raise InputError(field, source, f"class folder {name!r} stands twice")
        inside = [(parts, file) for parts, file in found.files if parts[0] == folder and len(parts) > 1]
        direct = [file for parts, file in inside if len(parts) == 2]
        classes[name] = sorted((f for f in direct if is_picture(f.name)), key=lambda file: file.name)
        other = [file for file in direct if not is_picture(file.name)]
        deeper = [file for parts, file in inside if len(parts) > 2]
        if not classes[name]:
            raise InputError(field, source, _without_images(name, other, deeper))
        if other:
            findings.note(
                f"not read in class folder {name!r}: {counted(len(other), 'file')} ({_kinds(other)})"
            )
        if deeper:
            findings.note(f"not read: folders inside class folder {name!r} ({counted(len(deeper), 'file')})")
    return {name: classes[name] for name in in_order(classes)}


def _unwrapped(path: Path, found: Listing, findings: Findings) -> Listing:
    """The inside of the one folder that a .zip of a folder holds, where the class folders are in that."""
    while path.is_file() and len(found.folders) == 1:
        (outer,) = found.folders
        depths = [len(parts) for parts, file in found.files if is_picture(file.name)]
        if not depths or min(depths) < 3:
            break
        findings.note(f"class folders are those in {clean(outer)!r}")
        found = found.below(outer)
    return found


def _without_images(name: str, other: list[File], deeper: list[File]) -> str:
    if any(is_picture(file.name) for file in deeper):
        folder = PurePosixPath(deeper[0].name).parent.name
        return f"class folder {name!r} holds no image itself; its images lie deeper, as in {folder!r}"
    if other:
        return f"class folder {name!r} holds no image that is read, but {_kinds(other)}"
    return f"class folder {name!r} holds no image"


def _kinds(files: list[File]) -> str:
    kinds = Counter(PurePosixPath(file.name).suffix.lower() or "no suffix" for file in files)
    return some(f"{count:,} {kind}" for kind, count in kinds.most_common())
