"""The file of kept features: a row an example, each with a digest of its own; nothing in it is believed unseen.

    header    JSON, 512 bytes: format, key, number of examples, shape and type of an example's features
    table     32 bytes an example: SHA-256 of the header, its place and its row; zeros where it is not kept
    rows      an example's features each, (Tc, D)

A file with another key, or of another length than its header says, is none; a row whose digest does not fit is not
kept. Rows are read, not mapped: a file that is cut short meanwhile is an error that can be handled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_FORMAT, _HEADER, _DIGEST = 1, 512, 32
Places = npt.NDArray[np.int64]


@dataclass
class PrefixFile:
    """An open file, also where another takes its name meanwhile. Its methods raise OSError on faults of the disk."""

    descriptor: int
    header: bytes
    dtype: torch.dtype
    shape: tuple[int, ...]
    row_bytes: int
    digests: npt.NDArray[np.uint8]  # (N, 32)
    held: npt.NDArray[np.bool_] = field(init=False)  # (N,)

    def __post_init__(self) -> None:
        self.held = (self.digests != 0).any(axis=1)
        self._hash = hashlib.sha256(self.header)

    @classmethod
    def found(cls, path: Path, key: str, count: int, most: int) -> PrefixFile | None:
        """The file of this key, of so many examples; none where there is no such file of at most `most` bytes, or it
        is not whole."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # also a link
            return None
        try:
            opened = cls._read(descriptor, key, count, most)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            opened = None
        if opened is None:
            os.close(descriptor)
        return opened

    @classmethod
    def _read(cls, descriptor: int, key: str, count: int, most: int) -> PrefixFile | None:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o077:
            return None
        header = os.pread(descriptor, _HEADER, 0)
        told = json.loads(header)
        dtype, shape = getattr(torch, told["dtype"]), tuple(told["shape"])
        if not isinstance(dtype, torch.dtype) or any(type(size) is not int or size < 1 for size in shape):
            return None
        row_bytes = math.prod(shape) * dtype.itemsize
        if (told["format"], told["key"], told["examples"]) != (_FORMAT, key, count):
            return None
        if state.st_size != size_of(count, row_bytes) or state.st_size > most:
            return None
        table = os.pread(descriptor, count * _DIGEST, _HEADER)
        digests = np.frombuffer(table, np.uint8).reshape(count, _DIGEST)
        return cls(descriptor, header, dtype, shape, row_bytes, digests.copy())

    @property
    def whole(self) -> bool:
        return bool(self.held.all())

    def close(self) -> None:
        os.close(self.descriptor)

    def read(self, places: Places) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        """The rows (k, bytes) at these places, and which of them are good (k,); the others are no longer kept.

        As much work for a row that is not kept, and for one that is asked for again.
        """
        rows = torch.empty(len(places), self.row_bytes, dtype=torch.uint8)
        for row, place in zip(rows.numpy(), places, strict=True):
            got = os.preadv(self.descriptor, [row], self._offset(place))
            digest = np.frombuffer(self._digest(place, row), np.uint8)
            self.held[place] = got == self.row_bytes and np.array_equal(digest, self.digests[place])
        return rows, self.held[places]

    def write(self, places: Places, rows: Tensor) -> None:
        """Keep rows (k or more, bytes) at these places (k,)."""
        for place, row in zip(places, rows.numpy(), strict=False):
            digest = self._digest(place, row)
            self._put(row.data, self._offset(place))
            self._put(digest, _HEADER + int(place) * _DIGEST)
            self.digests[place], self.held[place] = np.frombuffer(digest, np.uint8), True

    def _put(self, content: bytes | memoryview, offset: int) -> None:
        if os.pwrite(self.descriptor, content, offset) != len(content):
            raise OSError("not all of it was written")

    def _offset(self, place: np.int64) -> int:
        return _HEADER + len(self.held) * _DIGEST + int(place) * self.row_bytes

    def _digest(self, place: np.int64, row: npt.NDArray[np.uint8]) -> bytes:
        # Without the place, a row would pass for another example's.
        found = self._hash.copy()
        found.update(int(place).to_bytes(8, "big"))
        found.update(row.data)
        return found.digest()


def size_of(count: int, row_bytes: int) -> int:
    return _HEADER + count * (_DIGEST + row_bytes)


def header_of(key: str, count: int, made: Tensor) -> bytes:
    told = {
        "format": _FORMAT, "key": key, "examples": count, "dtype": str(made.dtype).removeprefix("torch."),
        "shape": list(made.shape[1:]),
    }  # fmt: skip
    return json.dumps(told).encode().ljust(_HEADER)
