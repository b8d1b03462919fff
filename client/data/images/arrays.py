"""Images in a .npz file: arrays `images` and `labels`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ....errors import InputError
from ....settings.contract import ImageContract
from ..findings import Findings, some
from .class_labels import Labels, of_values

Array = npt.NDArray[np.generic]
# Deflate packs a thousand zeros into a byte: what grows so much from so little is no set of images.
_MOST_GROWTH, _LARGE = 500, 1 << 28


def read_npz(field: str, path: Path, contract: ImageContract, findings: Findings) -> tuple[Array, Labels]:
    """Images (N, C, H, W) in their own range and labels (N,). Raises: InputError with what is wrong."""
    images, labels = arrays_of(field, path)
    return images, of_values(field, str(path), labels, contract, findings, lambda i: f"image {i + 1}")


def arrays_of(field: str, path: Path) -> tuple[Array, Array]:
    """Images (N, C, H, W) and labels (N,) as they are stored."""
    images, labels = _arrays(field, path, ("images", "labels"))
    if labels.ndim != 1:
        rule = f"expected images (N, H, W) or (N, C, H, W) and labels (N,), found {images.shape} and {labels.shape}"
        raise InputError(field, str(path), rule)
    return _by_channel(field, path, images, f" and {labels.shape}"), labels


def images_of(field: str, path: Path) -> Array:
    """Images (N, C, H, W) as they are stored, with labels or without."""
    return _by_channel(field, path, _arrays(field, path, ("images",))[0])


def _by_channel(field: str, path: Path, images: Array, beside: str = "") -> Array:
    if images.dtype.kind not in "iuf":
        rule = f"images are of type {images.dtype}, expected whole numbers or floats; save them as uint8, 0 and 255"
        raise InputError(field, str(path), rule if images.dtype == bool else rule.partition(";")[0])
    if 0 in images.shape[1:]:
        raise InputError(field, str(path), f"no pixels: images have the shape {images.shape}")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[-1] in (1, 3, 4) and images.shape[1] not in (1, 3, 4):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4:
        rule = f"expected images (N, H, W) or (N, C, H, W){' and labels (N,)' if beside else ''}"
        raise InputError(field, str(path), f"{rule}, found {images.shape}{beside}")
    return images


def _arrays(field: str, path: Path, names: tuple[str, ...]) -> list[Array]:
    def unreadable(reason: str) -> InputError:
        return InputError(field, str(path), f"not a readable .npz file ({reason})")

    try:
        with path.open("rb") as file:
            head = file.read(6)
        if head == b"\x93NUMPY":
            raise unreadable("an .npy under another name; save both arrays with numpy.savez")
        if not head.startswith(b"PK"):
            raise unreadable("an empty file" if not head else "no .zip archive, as .npz files are")
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.flag_bits & 1:
                    raise unreadable("encrypted")
                if entry.file_size > max(_LARGE, _MOST_GROWTH * entry.compress_size):
                    raise unreadable(f"{entry.filename!r} has {entry.file_size:,} bytes when unpacked")
        arrays = {}
        with np.load(path, allow_pickle=False) as loaded:
            for name in names:
                if name not in loaded.files:
                    rule = f"array {name!r} is missing; there are {some(map(repr, loaded.files)) or 'none'}"
                    raise InputError(field, str(path), rule)
                arrays[name] = _array(loaded, name)
    except InputError:
        raise
    except _Refused as refused:
        raise unreadable(str(refused)) from None
    except MemoryError:
        raise unreadable("needs more memory than there is") from None
    except OSError as error:
        raise unreadable(error.strerror or type(error).__name__) from None
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise unreadable("damaged or cut off") from None
    except Exception as error:  # numpy parses the headers of a stranger's file
        raise unreadable(type(error).__name__) from None
    return [arrays[name] for name in names]


class _Refused(Exception):
    """An array that is not read."""


def _array(loaded: np.lib.npyio.NpzFile, name: str) -> Array:
    try:
        found = loaded[name]
    except ValueError as error:
        if "Object arrays" in str(error):
            raise _Refused(f"array {name!r} holds Python objects") from None
        raise _Refused(f"array {name!r} is damaged or cut off") from None
    if not isinstance(found, np.ndarray):  # a member that does not begin as an array is given as bytes
        raise _Refused(f"{name!r} is no array")
    return found
