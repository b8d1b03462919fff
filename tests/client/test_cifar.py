"""CIFAR and MNIST files: every version holds the same images, and no pickle runs code."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from fedblocks.blocks.examples import Examples
from fedblocks.blocks.families.vit import ViTSettings
from fedblocks.client.data import load_examples
from fedblocks.errors import InputError
from fedblocks.experiments.presets import load_settings
from fedblocks.settings import DataSource

Pixels = tuple[np.ndarray, np.ndarray]
COLOUR = ViTSettings(image_size=32, channels=3, patch_size=8, classes=100, hidden_size=100)
GREY = ViTSettings(image_size=28, patch_size=7)


def load(path: Path, model: ViTSettings = COLOUR) -> Examples:
    return load_examples("data.public", DataSource(source=str(path)), model, False)


@pytest.fixture
def pixels() -> Pixels:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (12, 3072), dtype=np.uint8), np.arange(12, dtype=np.uint8) % 10


def check(found: Examples, pixels: Pixels) -> None:
    np.testing.assert_array_equal((found.inputs.numpy() * 255).round(), pixels[0].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(found.targets.numpy(), pixels[1])


def python2_pickle(data: np.ndarray, **lists: list[int]) -> bytes:
    """Protocol 2 with byte strings for text and old numpy names, as the published files are."""
    text = pickle.dumps({"data": data, **lists}, protocol=2).replace(b"numpy._core", b"numpy.core")
    for word in ("data", *lists):  # BINUNICODE -> SHORT_BINSTRING
        text = text.replace(
            b"X" + struct.pack("<I", len(word)) + word.encode(), b"U" + bytes([len(word)]) + word.encode()
        )
    return text


def test_cifar_10_binary_and_python_hold_the_same_images(tmp_path: Path, pixels: Pixels) -> None:
    """Would catch a wrong plane order, label offset or order of the batches."""
    data, labels = pixels
    for version in ("binary", "python"):
        (tmp_path / version).mkdir()
    for i, rows in enumerate((slice(0, 7), slice(7, 12)), start=1):
        records = np.concatenate([labels[rows, None], data[rows]], axis=1)
        (tmp_path / "binary" / f"data_batch_{i}.bin").write_bytes(records.tobytes())
        text = python2_pickle(data[rows], labels=labels[rows].tolist())
        (tmp_path / "python" / f"data_batch_{i}").write_bytes(text)
    for version in ("binary", "python"):
        check(load(tmp_path / version), pixels)
    first = load(tmp_path / "binary" / "data_batch_1.bin")
    check(first, (data[:7], labels[:7]))


def test_cifar_100_gives_the_fine_labels(tmp_path: Path, pixels: Pixels) -> None:
    """Would catch the coarse label, which stands first in a record."""
    data, labels = pixels
    fine = labels + 60
    records = np.concatenate([labels[:, None], fine[:, None], data], axis=1)
    (tmp_path / "binary").mkdir()
    (tmp_path / "python").mkdir()
    (tmp_path / "binary" / "train.bin").write_bytes(records.tobytes())
    text = python2_pickle(data, coarse_labels=labels.tolist(), fine_labels=fine.tolist())
    (tmp_path / "python" / "train").write_bytes(text)
    for version in ("binary", "python"):
        check(load(tmp_path / version), (data, fine))


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_idx(tmp_path: Path, packed: bool) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (9, 28, 28), dtype=np.uint8), np.arange(9, dtype=np.uint8)
    ending = ".gz" if packed else ""
    for name, values in {"train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": labels}.items():
        header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
        content = header + values.tobytes()
        (tmp_path / f"{name}{ending}").write_bytes(gzip.compress(content) if packed else content)
    for path in (tmp_path, tmp_path / f"train-images-idx3-ubyte{ending}"):
        found = load(path, GREY)
        np.testing.assert_array_equal((found.inputs[:, 0].numpy() * 255).round(), images)
        assert torch.equal(found.targets, torch.arange(9))


class Malicious:
    """Would write a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_pickle_that_names_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    """Would catch an ordinary unpickler, which opens the file that this pickle names."""
    trace = tmp_path / "trace"
    for content in (
        Malicious(trace),
        {b"data": Malicious(trace)},
        np.array([Malicious(trace)], dtype=object),
    ):
        (tmp_path / "train").write_bytes(pickle.dumps(content))
        with pytest.raises(InputError, match="refused"):
            load(tmp_path / "train")
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"no pickle", pickle.dumps([1]), pickle.dumps({b"data": 1}),
        pickle.dumps({b"data": np.zeros(3)}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}),
        pickle.dumps({b"data": np.zeros((2, 9), np.uint8), b"labels": [1, 2]}),
    ],
)  # fmt: skip
def test_broken_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    for name in ("data_batch_1", "data_batch_1.bin", "train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"data\.public.*not a readable"):
            load(tmp_path / name)
        (tmp_path / name).unlink()


def test_the_preset_has_the_papers_settings() -> None:
    settings = load_settings("vit-cifar100")
    assert isinstance(settings.model, ViTSettings)
    assert (settings.model.layers, settings.model.blocks, settings.model.classes) == (12, 3, 100)
    assert (settings.pretraining.batch_size, settings.pretraining.learning_rate) == (128, 5e-4)
