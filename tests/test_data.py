"""Data connectors: every source gives the same images, and bad data is refused by field, value and rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fedblocks.client.data import LabelledImages, load_images, standardise_contrast
from fedblocks.config import DataSource, ModelSettings
from fedblocks.errors import InputError
from fedblocks.experiments.partition import deal

MODEL = ModelSettings()


def load(path: Path | str, model: ModelSettings = MODEL, **options: str) -> LabelledImages:
    return load_images("data.private.source", DataSource(source=str(path), **options), model, False)


@pytest.fixture
def pixels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (30, 8, 8), dtype=np.uint8), np.arange(30) % 10


def test_all_formats_hold_the_same_images(tmp_path: Path, pixels: tuple[np.ndarray, np.ndarray]) -> None:
    """Would catch a transposed or rescaled reader: .npz, CSV, Parquet and folders must agree bit by bit."""
    images, labels = pixels
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    table = pd.DataFrame(images.reshape(30, 64), columns=[f"p{i}" for i in range(64)]).assign(digit=labels)
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "folder" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "folder" / str(label) / f"{i:03d}.png")
    reference = load(tmp_path / "a.npz")
    assert reference.images.shape == (30, 1, 8, 8)
    np.testing.assert_allclose(reference.images[:, 0].numpy(), images / 255, atol=1e-7)
    for other in (
        load(tmp_path / "a.csv", label="digit"),
        load(tmp_path / "a.parquet", label="digit"),
    ):
        assert torch.equal(other.images, reference.images)
        assert torch.equal(other.labels, reference.labels)
    folder = load(tmp_path / "folder")
    order = torch.argsort(reference.labels, stable=True)
    assert torch.equal(folder.images, reference.images[order])
    assert torch.equal(folder.labels, reference.labels[order])


def test_colour_and_size_are_brought_to_the_models(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "c.npz", images=rng.random((12, 16, 16, 3)), labels=np.zeros(12, int))
    data = load(tmp_path / "c.npz", ModelSettings(channels=3))
    assert data.images.shape == (12, 3, 8, 8)
    with pytest.raises(InputError, match=r"3 channels, model\.channels=1"):
        load(tmp_path / "c.npz")


def test_built_in_sets_are_real_and_in_range() -> None:
    digits, mnist = load("digits"), load("mnist-5k")
    assert (len(digits), len(mnist)) == (1797, 5000)
    for data in (digits, mnist):
        assert data.images.shape[1:] == (1, 8, 8)
        assert 0 <= data.images.min() < data.images.max() <= 1
        assert len(data.labels.unique()) == 10


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda x, y: (np.where(x == x[0, 0, 0], np.nan, x), y), "NaN"),
        (lambda x, y: (x, y + 1), "label 10 is outside 0 to 9"),
        (lambda x, y: (x, y - 1), "label -1 is outside 0 to 9"),
        (lambda x, y: (x, y + 0.5), "labels must be whole numbers"),
        (lambda x, y: (x * -1, y), "pixel values"),
        (lambda x, y: (x * 2, y), "pixel values"),
        (lambda x, y: (x, y[:-1]), "30 images but 29 labels"),
        (lambda x, y: (x[:0], y[:0]), "0 images"),
        (lambda x, y: (x[0, 0], y), "expected images"),
    ],
)
def test_bad_arrays_are_refused_with_the_rule(tmp_path: Path, pixels, change, rule: str) -> None:  # type: ignore[no-untyped-def]
    images, labels = change(pixels[0].astype(float), pixels[1])
    np.savez(tmp_path / "bad.npz", images=images, labels=labels)
    with pytest.raises(InputError, match=r"data\.private\.source") as caught:
        load(tmp_path / "bad.npz")
    assert rule in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    for name, content in {"x.npz": b"no", "x.csv": b"a,b\n1,x\n", "x.parquet": b"no", "x.txt": b"no"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError):
            load(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        load(tmp_path / "empty")
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "missing.npz")
    np.savez(tmp_path / "pickled.npz", images=np.array([{}], dtype=object), labels=np.zeros(1, int))
    with pytest.raises(InputError, match="not a readable"):
        load(tmp_path / "pickled.npz")


def test_contrast_is_matched_image_by_image() -> None:
    """Would catch a statistic of the whole set, which would let one example change all the others."""
    x = torch.rand(6, 1, 8, 8) * 0.3
    alone = standardise_contrast(x[:1])
    together = standardise_contrast(torch.cat([x[:1], torch.ones(5, 1, 8, 8)]))[:1]
    assert torch.equal(alone, together)
    assert standardise_contrast(x).min() >= 0
    assert standardise_contrast(x).max() <= 1


def test_parts_are_disjoint_cover_everything_repeat_and_skew() -> None:
    labels = np.arange(2000) % 10
    parts = deal(labels, 5, 1.0, seed=3)
    joined = np.concatenate(parts)
    assert sorted(joined) == list(range(2000))
    assert all((a == b).all() for a, b in zip(parts, deal(labels, 5, 1.0, seed=3), strict=True))

    def skew(alpha: float) -> float:
        shares = [np.bincount(labels[p], minlength=10) / len(p) for p in deal(labels, 5, alpha, seed=3)]
        return float(np.std(shares))

    assert skew(0.3) > 2 * skew(30.0)
    with pytest.raises(InputError, match=r"companies\.count"):
        deal(labels[:30], 5, 1.0, seed=0)
