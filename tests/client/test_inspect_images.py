"""Looking at images: what is said of them, and that the draft is a contract that reads them."""

from __future__ import annotations

import json
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fedblocks.blocks.families.vit import ViTSettings
from fedblocks.client.data import load_examples
from fedblocks.client.data.draft import Inspection
from fedblocks.client.data.images.inspect import inspect_images
from fedblocks.errors import InputError
from fedblocks.settings import DataSource
from fedblocks.settings.contract import ImageContract


def contract_of(found: Inspection) -> ImageContract:
    return ImageContract.model_validate(tomllib.loads(found.draft))


def reads(source: Path, found: Inspection, channels: int) -> int:
    """How many images the drafted contract reads."""
    told = contract_of(found)
    classes = len(told.labels) if told.labels else 10
    model = ViTSettings(channels=channels, classes=classes, hidden_size=32)
    return len(load_examples("data", DataSource(source=str(source), contract=told), model, False))


def shop(root: Path) -> Path:
    """Photographs as they lie about: two classes, one small, with all that can be odd about them."""
    rng = np.random.default_rng(0)
    for name, count in (("cup", 60), ("jar", 3)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    (root / "cup" / "copy.png").write_bytes((root / "cup" / "0.png").read_bytes())
    (root / "jar" / "other.png").write_bytes((root / "cup" / "1.png").read_bytes())
    (root / "cup" / "half.png").write_bytes((root / "cup" / "0.png").read_bytes()[:200])
    (root / "cup" / "._0.png").write_bytes(b"Mac")
    (root / "cup" / "list.txt").write_bytes(b"text")
    Image.new("L", (20, 20), 255).save(root / "cup" / "white.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (16, 12), "red").save(root / "cup" / "turned.jpg", exif=turned)
    return root


@pytest.mark.parametrize("pack", [False, True])
def test_a_folder_is_described_and_its_draft_reads_it(tmp_path: Path, pack: bool) -> None:
    source = shop(tmp_path / "shop")
    if pack:
        with zipfile.ZipFile(tmp_path / "shop.zip", "w") as archive:
            for file in sorted(source.rglob("*")):
                archive.write(file, file.relative_to(tmp_path))
        source = tmp_path / "shop.zip"
    above = "shop/" if pack else ""
    found = inspect_images(str(source))
    facts, said = found.findings.facts, "\n".join(found.findings.notes)
    assert facts["images"] == "68"
    assert facts["classes"] == "cup 64, jar 4"
    assert facts["sizes"] == "16x12 to 20x20, 2 different"
    assert facts["modes"].startswith("RGB 6")
    for part in (
        "passed over: 1 hidden name",
        "not read in class folder 'cup': 1 file (1 .txt)",
        f"not readable: 1 file ('{above}cup/half.png' damaged or cut off)",
        "2 files copied from others",
        f"1 image in two classes at once, as '{above}cup/1.png' and '{above}jar/other.png'",
        "1 image: turned as its EXIF data say",
        "1 image grey, ",
        "not square: fit = 'crop'",
        "of one colour all over: 2 images",
    ):
        assert part in said, part
    told = contract_of(found)
    assert told.labels == ("cup", "jar")
    assert (told.fit, told.broken) == ("crop", "skip")
    assert reads(source, found, 3) == 67
    assert found.example[f"{above}cup/0.png"].startswith("16x12 -> 3 x 12 x 12 numbers from 0")
    assert found.example["label"] == "cup -> 0"
    json.dumps(found.to_json())


def test_a_class_much_smaller_than_another_is_said(tmp_path: Path) -> None:
    for name, count in (("a", 40), ("b", 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("L", (8, 8), i).save(tmp_path / name / f"{i}.png")
    found = inspect_images(str(tmp_path))
    assert "class 'b' has 2 images, the largest class 40" in found.findings.notes


def test_looking_ends_in_time_and_says_so(tmp_path: Path) -> None:
    """Would catch a folder of a hundred thousand photographs that is read whole; the clock steps a second a look."""
    ticks = iter(range(10_000))
    found = inspect_images(str(shop(tmp_path / "shop")), clock=lambda: float(next(ticks)))
    said = [note for note in found.findings.notes if note.startswith("the ")]
    assert "the headers of 2 of 68 files were looked at, drawn at random" in said
    assert "the pixels of 2 of 68 files were looked at, drawn at random" in said


def test_tables_of_names_of_files_and_of_pixels(tmp_path: Path) -> None:
    root = shop(tmp_path / "shop")
    files = sorted(p for p in root.rglob("[0-9]*.png"))
    frame = pd.DataFrame({"id": range(63), "datei": [str(f.relative_to(root)) for f in files]})
    frame = frame.assign(label=[f.parent.name for f in files])
    frame.to_csv(root / "t.csv", index=False, sep=";")
    found = inspect_images(str(root / "t.csv"))
    told = contract_of(found)
    assert (told.path, told.label, told.labels, told.separator) == ("datei", "label", ("cup", "jar"), ";")
    assert "not read: 1 other column" in found.findings.notes
    assert reads(root / "t.csv", found, 3) == 63
    frame.assign(datei=[f.read_bytes() for f in files]).to_parquet(root / "t.parquet")
    found = inspect_images(str(root / "t.parquet"))
    assert contract_of(found).image == "datei"
    assert reads(root / "t.parquet", found, 3) == 63
    pixels = pd.DataFrame(np.random.default_rng(0).random((30, 64)).round(3)).assign(digit=[0, 1, 2] * 10)
    pixels.to_csv(root / "p.csv", index=False, sep=";", decimal=",")
    found = inspect_images(str(root / "p.csv"))
    assert (contract_of(found).label, contract_of(found).decimal) == ("digit", ",")
    assert reads(root / "p.csv", found, 1) == 30


def test_arrays(tmp_path: Path) -> None:
    images = np.arange(20 * 12 * 8, dtype=np.uint16).reshape(20, 12, 8)
    images[-1] = images[0]
    np.savez(tmp_path / "x.npz", images=images, labels=np.array(["b", "a"] * 10))
    found = inspect_images(str(tmp_path / "x.npz"))
    told = contract_of(found)
    assert (told.labels, told.fit, told.bits) == (("a", "b"), "crop", 11)
    assert "1 image copied from others; each copy counts as an example" in found.findings.notes
    assert reads(tmp_path / "x.npz", found, 1) == 20
    assert inspect_images("digits").findings.facts["images"] == "1,797"


def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"no image that can be read; 'a/0\.png': of no format"):
        inspect_images(str(tmp_path))
    with pytest.raises(InputError, match="no such file"):
        inspect_images(str(tmp_path / "gone"))
