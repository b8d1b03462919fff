"""Image sets in the files they are usually spread in: CIFAR-10 and CIFAR-100, MNIST.

CIFAR comes as raw records ("binary version": label bytes, then 3072 bytes of an image, plane by plane) or as
Python pickles. Unpickling runs whatever code the file names, so a pickle is read by an unpickler that knows
arrays of bytes and nothing else. MNIST comes as idx files, gzipped or not.
"""

from __future__ import annotations

import gzip
import io
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....errors import InputError

Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

CIFAR_PIXELS = 3 * 32 * 32
# What unpickling a file that is none may raise.
_BAD_PICKLE = (
    pickle.UnpicklingError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    MemoryError,
)
# Training files of a folder, by format; whichever is found first is read.
_LAYOUTS: tuple[tuple[str, ...], ...] = (
    ("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"),
    ("train.bin",),
    ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    ("train",),
    ("train-images-idx3-ubyte",),
    ("train-images-idx3-ubyte.gz",),
)
_PICKLED = {*_LAYOUTS[2], "test_batch", "train", "test"}


def training_files(folder: Path) -> list[Path]:
    """The training files of a folder in one of the usual layouts, or none."""
    for names in _LAYOUTS:
        if (folder / names[0]).is_file():
            return [folder / name for name in names if (folder / name).is_file()]
    return []


def is_image_file(path: Path) -> bool:
    """Whether the name is one of those that these sets give their files."""
    return path.suffix == ".bin" or "idx3-ubyte" in path.name or path.name in _PICKLED


def read_image_file(field: str, path: Path) -> Arrays:
    """Images (N, C, H, W) of bytes and labels (N,); of CIFAR-100 the fine ones."""
    try:
        if "idx3-ubyte" in path.name:
            labels = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
            return _idx(path)[:, None], _idx(labels).astype(np.int64)
        return _cifar_binary(path) if path.suffix == ".bin" else _cifar_python(path)
    except (OSError, EOFError, zlib.error, *_BAD_PICKLE) as error:
        rule = str(error) if isinstance(error, pickle.UnpicklingError | ValueError) else type(error).__name__
        raise InputError(field, str(path), f"not a readable CIFAR or MNIST file ({rule})") from None


def _cifar_binary(path: Path) -> Arrays:
    """One label byte an image in CIFAR-10's files; coarse and fine in CIFAR-100's train.bin and test.bin."""
    label_bytes = 2 if path.name in ("train.bin", "test.bin") else 1
    records = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if records.size == 0 or records.size % (label_bytes + CIFAR_PIXELS):
        raise ValueError(f"{records.size} bytes are no records of {label_bytes + CIFAR_PIXELS}")
    records = records.reshape(-1, label_bytes + CIFAR_PIXELS)
    return _images(records[:, label_bytes:]), records[:, label_bytes - 1].astype(np.int64)


def _cifar_python(path: Path) -> Arrays:
    content: Any = ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    if not isinstance(content, dict) or b"data" not in content:
        raise ValueError("no array 'data' in it")
    pixels = getattr(content[b"data"], "values", None)
    labels = content.get(b"fine_labels", content.get(b"labels"))
    if pixels is None or pixels.shape[1:] != (CIFAR_PIXELS,):
        raise ValueError(f"'data' is not (N, {CIFAR_PIXELS}) of bytes")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        raise ValueError("no label for each image in it")
    return _images(pixels), np.array(labels, dtype=np.int64)


def _images(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return rows.reshape(-1, 3, 32, 32)


class ArrayUnpickler(pickle.Unpickler):
    """Knows the names by which numpy pickles a plain array; any other name is refused, not imported.

    Even numpy's own classes are stood in for: their state, taken from an untrusted file, could name memory
    that is not the array's.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda *array: PickledBytes()
        if module == "numpy" and name in ("ndarray", "dtype"):
            return PickledType
        if module == "_codecs" and name == "encode":  # how Python 3 writes bytes under an old protocol
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused")


class PickledType:
    """Stands for numpy's dtype; `kind` as in its constructor."""

    def __init__(self, kind: str | bytes = "", align: object = False, copy: object = True) -> None:
        self.kind = kind.decode("latin1") if isinstance(kind, bytes) else kind

    def __setstate__(self, state: object) -> None:
        """Byte order and the like: bytes have none."""


class PickledBytes:
    """Stands for numpy's array of bytes; `values` is the array."""

    values: npt.NDArray[np.uint8]

    def __setstate__(self, state: tuple[object, tuple[int, ...], PickledType, bool, bytes]) -> None:
        _, shape, kind, fortran, raw = state
        if not isinstance(kind, PickledType) or kind.kind != "u1":
            raise pickle.UnpicklingError("it holds an array that is not of bytes")
        self.values = np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")


def _idx(path: Path) -> npt.NDArray[np.uint8]:
    """Big-endian: two zeros, type (8: bytes), dimensions, their sizes, values."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    if content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{path.name} does not start as an idx file of bytes")
    shape = np.frombuffer(content, dtype=">u4", count=content[3], offset=4).astype(np.int64)
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * content[3])
    if values.size != int(np.prod(shape)):
        raise ValueError(f"{path.name} holds {values.size} values, its header says {tuple(shape.tolist())}")
    return values.reshape(shape)
