"""Which files a source of text has: one, those of a folder, or the members of a .zip; what is passed over is said."""

from __future__ import annotations

import io
import os
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ....errors import InputError
from ..findings import Findings, counted
from ..tables.csv_files import COMPRESSED, inner_suffix, opened
from ..tables.excel import EXCEL

PLAIN = (".txt", ".md", ".rst")
LINES = (".jsonl", ".ndjson")
SUFFIXES = (*PLAIN, *LINES, ".parquet")
_SHARD = "news.en"
_NO_TEXT = (
    ".csv", ".tsv", ".feather", ".arrow", *EXCEL, ".xls", ".json", ".docx", ".doc", ".odt", ".pdf", ".rtf", ".epub",
)  # fmt: skip
MOST_GROWTH, SMALL = 100, 1 << 26  # what is unpacked is at most so many times its size, if it is not small


class Bomb(Exception):
    """A compressed file grows as no text does."""


@dataclass(frozen=True)
class File:
    """`shown` in errors, `name` by its path within the source, `within`: which member of an archive it is."""

    shown: str
    name: str
    open: Callable[[], IO[bytes]]
    within: str = ""

    @property
    def suffix(self) -> str:
        return inner_suffix(Path(self.name))

    @property
    def is_shard(self) -> bool:
        return PurePosixPath(self.name).name.startswith(_SHARD)


def files_of(field: str, source: str, known: list[str], findings: Findings) -> list[File]:
    """In the order of their names. Raises: InputError where there is none; `known` are other sources to name then."""
    path = Path(source)
    try:
        if path.is_dir():
            return _chosen(field, source, _in_folder(path), "here", findings)
        if not path.is_file():
            rule = f"no such file or folder; built-in texts: {', '.join(known)}"
            raise InputError(field, source, rule)
        if path.suffix.lower() == ".zip":
            return _members(field, path, findings)
    except OSError as error:
        raise InputError(field, source, f"not readable ({error.strerror or type(error).__name__})") from None
    if inner_suffix(path) in _NO_TEXT:
        raise InputError(field, source, f"is no text; save its text as {', '.join(SUFFIXES)}")
    return [_on_disk(path, path.parent)]


def is_hidden(name: str) -> bool:
    """Whether a path within the source is one that people do not see: .ipynb_checkpoints, ._name, __MACOSX."""
    return any(part.startswith((".", "~$")) or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _in_folder(root: Path) -> list[File]:
    def fail(error: OSError) -> None:
        raise error

    paths = [Path(folder, name) for folder, _, names in os.walk(root, onerror=fail) for name in names]
    return [_on_disk(path, root) for path in sorted(paths) if path.is_file()]


def _on_disk(path: Path, root: Path) -> File:
    def opening() -> IO[bytes]:
        if path.suffix.lower() in COMPRESSED:
            return io.BufferedReader(_Grown(path))
        return path.open("rb")

    return File(str(path), path.relative_to(root).as_posix(), opening)


def _chosen(field: str, source: str, files: list[File], where: str, findings: Findings) -> list[File]:
    """Those of text; the others are noted."""
    seen = [file for file in files if not is_hidden(file.name)]
    kept = [file for file in seen if file.is_shard or file.suffix in SUFFIXES or _is_named_alone(file)]
    if len(seen) < len(files):
        names = [file.name for file in files if is_hidden(file.name)]
        few = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        findings.note(f"{counted(len(names), 'hidden file')} not read: {few}")
    if len(kept) < len(seen):
        names = [file.name for file in seen if file not in kept]
        kinds = Counter(PurePosixPath(name).suffix or "without a suffix" for name in names)
        shown = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common(6))
        findings.note(f"{counted(len(names), 'file')} of other kinds not read: {shown}")
    if not kept:
        raise InputError(field, source, f"no {', '.join(SUFFIXES)} or {_SHARD}-* files {where}")
    return kept


def _is_named_alone(file: File) -> bool:
    """Whether it is a member of an archive without a suffix, as text8.zip has."""
    return bool(file.within) and not PurePosixPath(file.name).suffix


def _members(field: str, path: Path, findings: Findings) -> list[File]:
    """The members of an archive, whose sizes are checked before one is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = sorted((i for i in archive.infolist() if not i.is_dir()), key=lambda i: i.filename)
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise InputError(field, str(path), "not a readable .zip file: damaged, or cut short") from None
    whole = sum(info.file_size for info in infos)
    if whole > max(MOST_GROWTH * path.stat().st_size, SMALL):
        rule = f"would unpack to {whole:,} bytes, over {MOST_GROWTH} times its size; unpack it yourself"
        raise InputError(field, str(path), rule)
    members = [
        File(str(path), info.filename, _opener(path, info.filename), f"{info.filename} in it ")
        for info in infos
        if PurePosixPath(info.filename).suffix.lower() not in COMPRESSED
    ]
    kept = _chosen(field, str(path), members, "in it", findings)
    encrypted = {info.filename for info in infos if info.flag_bits & 1}
    for file in kept:
        if file.name in encrypted:
            rule = f"{file.within}is encrypted; unpack it with its password first"
            raise InputError(field, str(path), rule)
    return kept


def _opener(path: Path, member: str) -> Callable[[], IO[bytes]]:
    def opening() -> IO[bytes]:
        with zipfile.ZipFile(path) as archive:  # the file stays open for the member that is read
            found = archive.open(member)
        if not member.lower().endswith(".parquet"):
            return found
        with found:
            return io.BytesIO(found.read())  # Parquet is read from its end

    return opening


class _Grown(io.RawIOBase):
    """What a compressed file holds. Raises: Bomb where it grows as only a bomb does."""

    def __init__(self, path: Path) -> None:
        self._stream = opened(path)
        self._left = max(MOST_GROWTH * path.stat().st_size, SMALL)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._stream.read(len(buffer))
        self._left -= len(found)
        if self._left < 0:
            raise Bomb(f"unpacks to over {MOST_GROWTH} times its size; unpack it yourself")
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._stream.close()
        super().close()
