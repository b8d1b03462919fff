"""Images as people have them: any size and mode, folders with strangers in them, broken files, tables of files."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console

from fedblocks.blocks.examples import Examples
from fedblocks.blocks.families.vit import ViTSettings
from fedblocks.cli.progress import prepare_with_progress
from fedblocks.client.data import load_examples
from fedblocks.client.data.findings import Findings
from fedblocks.client.data.images.class_labels import check_same
from fedblocks.errors import InputError
from fedblocks.experiments.presets import load_settings
from fedblocks.experiments.simulation.preparation import read_inputs
from fedblocks.settings import DataSource
from fedblocks.settings.contract import ImageContract

GREY = ViTSettings(classes=4, hidden_size=32)
COLOUR = ViTSettings(classes=4, channels=3, hidden_size=32)


def load(
    path: Path, model: ViTSettings = GREY, /, *, findings: Findings | None = None, **contract: Any
) -> Examples:
    told = ImageContract(least_examples=1, **contract) if contract else None
    return load_examples("data", DataSource(source=str(path), contract=told), model, False, findings)


def refused(path: Path, model: ViTSettings = GREY, /, **contract: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(path, model, **contract)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def noise(side: int = 8, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8))


def tree(root: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 3) -> Path:
    """Class folders; image i of class c has the one grey level 20 c + i."""
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.new("L", (8, 8), 20 * c + i).save(root / name / f"{i}.png")
    return root


def packed(root: Path, path: Path, above: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, above + str(file.relative_to(root)))
    return path


# --- modes and sizes ---------------------------------------------------------------------------------------------


def one(tmp_path: Path, image: Image.Image, name: str = "0.png", **options: Any) -> Path:
    folder = tmp_path / "pics" / "cat"
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, **options)
    return tmp_path / "pics"


@pytest.mark.parametrize("name", ["0.png", "0.tif", "0.pgm"])
def test_16_bits_keep_their_whole_range(tmp_path: Path, name: str) -> None:
    """Would catch values above 255 cut off, or the lower byte alone."""
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    found, said = one(tmp_path, Image.fromarray(values), name), Findings("x")
    read = load(found, findings=said).inputs[0, 0]
    np.testing.assert_allclose(read.numpy(), values / 65535, atol=1e-6)
    assert "1 image: scaled from more than 8 bits a pixel" in said.notes


def test_12_bits_in_16_are_scaled_by_what_the_contract_says(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 64).reshape(8, 8).astype(np.uint16)
    path = one(tmp_path, Image.fromarray(values))
    np.testing.assert_allclose(load(path, bits=12).inputs[0, 0].numpy(), values / 4095, atol=1e-6)
    assert "outside the 0 to 1023 of 10 bits" in refused(path, bits=10)


def test_32_bit_numbers_and_fractions_need_a_known_range(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 64).reshape(8, 8).astype(np.float32)
    path = one(tmp_path, Image.fromarray(values), "0.tif")
    np.testing.assert_allclose(load(path).inputs[0, 0].numpy(), values, atol=1e-6)
    one(tmp_path, Image.fromarray(values * 300), "0.tif")
    assert "fractions outside 0 to 1" in refused(path)
    one(tmp_path, Image.fromarray((values * 1000).astype(np.int32)), "0.tif")
    assert "bits = 16" in refused(path)
    np.testing.assert_allclose(
        load(path, bits=10).inputs[0, 0].numpy(), (values * 1000).astype(int) / 1023, atol=1e-6
    )


def test_transparent_parts_show_the_background(tmp_path: Path) -> None:
    """Would catch the colour that an editor left under transparent pixels."""
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[:4] = (255, 0, 0, 255)
    pixels[4:] = (0, 255, 0, 0)
    path, said = one(tmp_path, Image.fromarray(pixels)), Findings("x")
    white = load(path, COLOUR, findings=said).inputs[0]
    assert torch.equal(white[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(white[:, 7, 7], torch.ones(3))
    assert "1 image: transparent parts are laid on white" in said.notes
    assert torch.equal(load(path, COLOUR, background="black").inputs[0, :, 7, 7], torch.zeros(3))
    assert load(path).inputs[0, 0, 7, 7] == 1


def test_a_palettes_transparent_colour_shows_the_background(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 1)
    found = load(one(tmp_path, image, transparency=0), COLOUR).inputs[0]
    assert torch.equal(found[:, 7, 7], torch.ones(3))
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([10, 20, 30]) / 255)


def test_cmyk_grey_and_one_bit_are_converted_and_noted(tmp_path: Path) -> None:
    one(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "0.jpg", quality=100)
    one(tmp_path, Image.new("L", (8, 8), 51), "1.png")
    path, said = one(tmp_path, Image.new("1", (8, 8), 1), "2.png"), Findings("x")
    found = load(path, COLOUR, findings=said).inputs
    torch.testing.assert_close(found[0, :, 3, 3], torch.tensor([1.0, 0.0, 0.0]), atol=0.02, rtol=0)
    assert torch.equal(found[1, :, 0, 0], torch.full((3,), 51 / 255))
    assert torch.equal(found[2], torch.ones(3, 8, 8))
    assert "1 image: converted from CMYK, without a colour profile" in said.notes
    assert "2 images: grey, becomes three equal colours" in said.notes
    load(path, findings=said)
    assert "1 image: made grey" in said.notes


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("name", ["0.jpg", "0.png", "0.tif"])
def test_exif_says_where_up_is(tmp_path: Path, turn: int, name: str) -> None:
    """Would catch a photograph that lies on its side, or is turned twice; as PIL.ImageOps turns it."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = turn
    image = Image.fromarray(np.repeat(np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2) * 60, 4, 0), 4, 1))
    path, said = one(tmp_path, image, name, exif=exif), Findings("x")
    with Image.open(path / "cat" / name) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened)) / 255
    np.testing.assert_allclose(load(path, findings=said).inputs[0, 0].numpy(), expected, atol=1e-6)
    assert any("EXIF" in note for note in said.notes) == (turn != 1)


def test_the_first_frame_of_an_animation_is_read_and_said(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), level) for level in (0, 255)]
    path, said = one(tmp_path, frames[0], "0.gif", save_all=True, append_images=frames[1:]), Findings("x")
    assert load(path, findings=said).inputs.max() == 0
    assert "1 image: only the first frame or page is read" in said.notes


@pytest.mark.parametrize("as_file", [True, False])
def test_what_is_not_square_becomes_so_as_told(tmp_path: Path, as_file: bool) -> None:
    """Would catch a stretch in silence: 8 x 16 of three levels, the outer quarters black."""
    pixels = np.zeros((8, 16), dtype=np.uint8)
    pixels[:, 4:12] = 204
    if as_file:
        path = one(tmp_path, Image.fromarray(pixels))
    else:
        path = tmp_path / "x.npz"
        np.savez(path, images=pixels[None], labels=[0])
    rule = refused(path)
    assert "16x8 pixels, not square" in rule
    assert 'fit = "crop", "pad" or "stretch"' in rule
    crop, stretch = load(path, fit="crop").inputs, load(path, fit="stretch").inputs
    assert torch.equal(crop, torch.full((1, 1, 8, 8), 0.8))
    assert stretch[0, 0, 0].tolist() == pytest.approx([0, 0, *[0.8] * 4, 0, 0])
    pad = load(path, fit="pad").inputs[0, 0]
    assert pad[0].tolist() == pad[7].tolist() == [1] * 8
    assert torch.equal(pad[2:6], stretch[0, 0, 2:6])
    assert load(path, fit="pad", background="black").inputs[0, 0, 0].max() == 0
    said = Findings("x")
    load(path, findings=said, fit="crop")
    assert "1 image: not square, cropped to their middle" in said.notes


def test_another_size_is_resized_and_said(tmp_path: Path) -> None:
    one(tmp_path, noise(16))
    path, said = one(tmp_path, noise(40), "1.png"), Findings("x")
    load(path, findings=said)
    assert "2 images: resized from 16x16 to 40x40 to 8x8" in said.notes
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 16, 16)), labels=[0, 1, 2])
    said = Findings("x")
    load(tmp_path / "x.npz", findings=said)
    assert "3 images: resized from 16x16 to 8x8" in said.notes


# --- folders and archives ----------------------------------------------------------------------------------------


def test_strangers_are_passed_over(tmp_path: Path) -> None:
    """Would catch a hidden folder as a class, which moves every label by one, and Mac's shadow files as images."""
    root = tree(tmp_path / "pics")
    plain = load(root)
    for folder in (".ipynb_checkpoints", "__MACOSX", ".thumbnails"):
        (root / folder).mkdir()
        noise().save(root / folder / "0.png")
    for name in ("cat/._0.png", "cat/.DS_Store", "dog/Thumbs.db", "._cat", ".DS_Store", "dog/desktop.ini"):
        (root / name).write_bytes(b"Mac OS X")
    said = Findings("x")
    found = load(root, findings=said)
    assert torch.equal(found.inputs, plain.inputs)
    assert torch.equal(found.targets, plain.targets)
    assert "passed over: 9 hidden names" in said.notes
    archive = load(packed(root, tmp_path / "pics.zip"))
    assert torch.equal(archive.inputs, plain.inputs)
    assert torch.equal(archive.targets, plain.targets)


@pytest.mark.parametrize("above", ["", "pictures/", "a/b/"])
def test_a_zip_is_read_as_the_folder_that_it_holds(tmp_path: Path, above: str) -> None:
    root = tree(tmp_path / "pics")
    plain, found = load(root), load(packed(root, tmp_path / "x.ZIP", above))
    assert torch.equal(found.inputs, plain.inputs)
    assert torch.equal(found.targets, plain.targets)


def test_tif_and_gif_are_read_and_other_files_are_said(tmp_path: Path) -> None:
    root = tree(tmp_path / "pics")
    noise().save(root / "cat" / "a.tif")
    noise().save(root / "dog" / "b.GIF")
    for name in ("cat/notes.txt", "cat/x.heic", "cat/y.heic", "list.csv"):
        (root / name).write_bytes(b"x")
    (root / "dog" / "more").mkdir()
    noise().save(root / "dog" / "more" / "0.png")
    said = Findings("x")
    assert len(load(root, findings=said)) == 8
    assert "not read in class folder 'cat': 3 files (2 .heic, 1 .txt)" in said.notes
    assert "not read: 1 file beside the class folders (1 .csv)" in said.notes
    assert "not read: folders inside class folder 'dog' (1 file)" in said.notes


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "class folder 'emu' holds no image"),
        (["a.txt"], "class folder 'emu' holds no image that is read, but 1 .txt"),
        (["._a.png"], "class folder 'emu' holds no image"),
        (["train/a.png"], "class folder 'emu' holds no image itself; its images lie deeper, as in 'train'"),
    ],
)
@pytest.mark.parametrize("pack", [False, True])
def test_a_class_without_an_image_is_refused_by_name(
    tmp_path: Path, files: list[str], said: str, pack: bool
) -> None:
    root = tree(tmp_path / "pics")
    (root / "emu").mkdir()
    for name in files:
        (root / "emu" / name).parent.mkdir(exist_ok=True)
        noise().save(root / "emu" / "a.bmp")
        (root / "emu" / "a.bmp").rename(root / "emu" / name)
    assert said in refused(packed(root, tmp_path / "x.zip") if pack else root)


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    noise().save(tmp_path / "0.png")
    assert "1 image and no class folder" in refused(tmp_path)


def png(width: int, height: int) -> bytes:
    """A whole header, and nothing of the pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def encoded(kind: str = "PNG", side: int = 40) -> bytes:
    file = io.BytesIO()
    noise(side).save(file, kind)
    return file.getvalue()


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "empty": ("x.png", b"", "an empty file"),
    "no image": ("x.png", b"<html>not found</html>", "of no format that is read"),
    "cut off": ("x.jpg", encoded("JPEG")[:300], "damaged or cut off"),
    "cut off tif": ("x.tif", encoded("TIFF")[:90], ""),
    "first chunk": (
        "x.png",
        encoded()[:40] + b"\0\0\0\0" + encoded()[44:],
        "of no format that is read, or damaged",
    ),
    "pixels": ("x.png", encoded()[:90] + bytes(200) + encoded()[290:], "damaged or cut off"),
    "bomb": ("x.png", png(60_000, 60_000), "has more than 178,956,970 pixels"),
    "pointer": ("x.png", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("pack", [False, True])
def test_a_broken_file_is_named_or_skipped_as_told(tmp_path: Path, case: str, pack: bool) -> None:
    root = tree(tmp_path / "pics")
    plain = load(root)
    name, content, reason = BROKEN[case]
    (root / "cat" / name).write_bytes(content)
    path = packed(root, tmp_path / "x.zip") if pack else root
    rule = refused(path)
    assert f"'cat/{name}' is not a readable image ({reason}" in rule
    assert 'broken = "skip"' in rule
    said = Findings("x")
    assert torch.equal(load(path, findings=said, broken="skip").inputs, plain.inputs)
    assert f"left out, since not readable: 1 image ('cat/{name}')" in said.notes


def test_a_class_of_broken_files_alone_is_refused_even_where_they_are_skipped(tmp_path: Path) -> None:
    root = tree(tmp_path / "pics")
    for file in (root / "cat").iterdir():
        file.write_bytes(b"x")
    assert "class folder 'cat' holds no image that can be read" in refused(root, broken="skip")


def test_names_that_are_no_utf8_or_of_two_lines_stay_on_one_line(tmp_path: Path) -> None:
    root = tree(tmp_path / "pics")
    for name in (b"\xff\xfe.png", b"a\nb.png"):
        file = Path(str(root / "cat") + "/" + name.decode("utf-8", "surrogateescape"))
        file.write_bytes(b"x")
        said = refused(root)
        assert said.encode("utf-8")
        assert "cat/" in said
        file.unlink()


def encrypted(path: Path) -> Path:
    """The flag of encryption set on every entry, in both of its places."""
    raw = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = raw.find(mark)
        while at >= 0:
            raw[at + offset] |= 1
            at = raw.find(mark, at + 1)
    path.write_bytes(raw)
    return path


def test_bad_archives_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tree(tmp_path / "pics"), tmp_path / "x.zip")
    raw = path.read_bytes()
    (tmp_path / "cut.zip").write_bytes(raw[: len(raw) // 2])
    assert "not a readable .zip file (damaged or cut off)" in refused(tmp_path / "cut.zip")
    (tmp_path / "flipped.zip").write_bytes(raw.replace(b"IDAT", b"IDAX"))
    assert "'cat/0.png' is not a readable image (damaged in the .zip file" in refused(
        tmp_path / "flipped.zip"
    )
    monkeypatch.setattr("fedblocks.client.data.images.folders.MOST_UNPACKED", 50)
    assert "at most 50 are read" in refused(path)
    assert "an encrypted .zip file" in refused(encrypted(path))


# --- classes -----------------------------------------------------------------------------------------------------


def test_numbered_folders_have_their_number_or_its_order(tmp_path: Path) -> None:
    """Would catch "10" sorted before "2", and a company without class 0 whose labels all move down."""
    twelve = ViTSettings(classes=12, hidden_size=48)
    names = [str(i) for i in range(12)]
    found = load(tree(tmp_path / "all", tuple(names), 1), twelve)
    levels = (found.inputs[:, 0, 0, 0] * 255).round()
    assert (levels / 20).tolist() == found.targets.tolist() == list(range(12))
    some = load(tree(tmp_path / "some", ("2", "10"), 1), twelve)
    assert some.targets.tolist() == [2, 10]
    years = load(tree(tmp_path / "years", ("2023", "999"), 1), twelve)
    assert (years.inputs[:, 0, 0, 0] * 255).round().tolist() == [20, 0]


def test_the_contract_orders_the_classes(tmp_path: Path) -> None:
    root = tree(tmp_path / "pics")
    said = Findings("x")
    found = load(root, findings=said, labels=("emu", "dog", "cat"))
    assert found.targets.tolist() == [2] * 3 + [1] * 3
    assert "no folder for emu" in said.notes
    assert said.classes == {"cat": 2, "dog": 1}
    assert "class folder 'dog' is not one of the contract's labels: cat, emu" in refused(
        root, labels=("cat", "emu")
    )
    assert "5 class folders" in refused(tree(tmp_path / "many", tuple("abcde"), 1))


def named(**classes: int) -> Findings:
    return Findings("x", classes=classes)


@pytest.mark.parametrize(
    ("public", "private", "rule"),
    [
        (
            named(bird=0, cat=1, dog=2),
            named(cat=0, dog=1),
            "class 'cat' has label 0, which public data give to 'bird'",
        ),
        (
            named(cat=0, dog=1),
            named(chat=0, dog=1),
            "class 'chat' has label 0, which public data give to 'cat'",
        ),
        (named(cat=0, dog=1), named(cat=0, dog=1, emu=2), None),
        (named(cat=0, dog=1, emu=2), named(dog=1), None),
        (named(), named(cat=0, dog=1), None),
        (named(), named(), None),
    ],
)
def test_a_class_has_one_label_in_public_and_private_data(
    public: Findings, private: Findings, rule: str | None
) -> None:
    if rule is None:
        check_same(public, private, "data.private.source")
        return
    with pytest.raises(InputError, match=r"data\.private\.source") as caught:
        check_same(public, private, "data.private.source")
    assert rule in str(caught.value)
    assert "labels = [" in str(caught.value)


def test_class_sets_that_differ_are_refused_and_mended_by_one_contract(tmp_path: Path) -> None:
    public = tree(tmp_path / "public", ("bird", "cat", "dog"), 12)
    private = tree(tmp_path / "private", ("cat", "dog"), 30)
    sources = [f"data.public.source={public}", f"data.private.source={private}", "companies.count=3"]
    sources += ["companies.alpha=100"]
    with pytest.raises(InputError, match="class 'cat' has label 0, which public data give to 'bird'"):
        read_inputs(load_settings("digits", [*sources, "model.classes=3"]))
    (tmp_path / "c.toml").write_text('kind = "images"\nlabels = ["bird", "cat", "dog"]\n')
    settings = load_settings("digits", [*sources, f"data.contract={tmp_path / 'c.toml'}", "model.classes=3"])
    inputs = read_inputs(settings)
    assert set(torch.cat([part.targets for part in inputs.companies.values()]).tolist()) == {1, 2}
    assert inputs.findings["private"].classes == {"cat": 1, "dog": 2}
    json.dumps([found.to_json() for found in inputs.findings.values()])


# --- tables ------------------------------------------------------------------------------------------------------


def rows(root: Path) -> pd.DataFrame:
    files = sorted(root.rglob("*.png"))
    return pd.DataFrame(
        {"file": [str(f.relative_to(root)) for f in files], "kind": [f.parent.name for f in files]}
    )


WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    "t.csv": lambda frame, path: frame.to_csv(path, index=False),
    "t.csv.gz": lambda frame, path: frame.to_csv(path, index=False),
    "t.parquet": lambda frame, path: frame.to_parquet(path),
    "t.feather": lambda frame, path: frame.to_feather(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_of_file_names_gives_what_the_folders_give(tmp_path: Path, name: str) -> None:
    root = tree(tmp_path / "pics")
    WRITERS[name](rows(root), root / name)
    told = {"path": "file", "label": "kind", "labels": ("cat", "dog")}
    found, plain = load(root / name, **told), load(root)
    assert torch.equal(found.inputs, plain.inputs)
    assert torch.equal(found.targets, plain.targets)


def test_names_as_windows_writes_them_and_files_named_twice(tmp_path: Path) -> None:
    root = tree(tmp_path / "pics")
    frame = rows(root)
    frame["file"] = frame["file"].str.replace("/", "\\")
    pd.concat([frame, frame[:1]]).to_csv(root / "t.csv", index=False)
    said = Findings("x")
    found = load(root / "t.csv", findings=said, path="file", label="kind", labels=("cat", "dog"))
    assert len(found) == 7
    assert "column 'file' names a file again in 1 row; each counts as an example" in said.notes


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("name", ["t.parquet", "t.feather"])
def test_a_table_of_image_files_gives_what_the_folders_give(tmp_path: Path, record: bool, name: str) -> None:
    root = tree(tmp_path / "pics")
    frame = rows(root)
    raw = [(root / file).read_bytes() for file in frame["file"]]
    frame["image"] = [{"bytes": b, "path": None} for b in raw] if record else raw
    WRITERS[name](frame[["image", "kind"]].replace({"cat": 0, "dog": 1}), root / name)
    found, plain = load(root / name, image="image", label="kind"), load(root)
    assert torch.equal(found.inputs, plain.inputs)
    assert torch.equal(found.targets, plain.targets)


def test_rows_without_file_or_label_are_named_or_skipped(tmp_path: Path) -> None:
    root = tree(tmp_path / "pics")
    frame = rows(root)
    frame.loc[1, "kind"] = None
    frame.loc[2, "file"] = "cat/gone.png"
    frame.loc[4, "file"] = None
    frame.to_csv(root / "t.csv", index=False)
    told = {"path": "file", "label": "kind", "labels": ("cat", "dog")}
    assert "row 2 of column 'kind' has no label" in refused(root / "t.csv", **told)
    said = Findings("x")
    found = load(root / "t.csv", findings=said, broken="skip", **told)
    assert (found.inputs[:, 0, 0, 0] * 255).round().tolist() == [0, 20, 22]
    assert "left out, since without label: 1 row" in said.notes
    assert "left out, since not readable: 2 images ('cat/gone.png (row 3)', 'row 5')" in said.notes
    frame.assign(kind="emu").to_csv(root / "t.csv", index=False)
    rule = refused(root / "t.csv", **told)
    assert "row 1 of column 'kind' has a label that the contract does not list: cat, dog" in rule
    assert "emu" not in rule
    frame.assign(kind="cat").to_csv(root / "t.csv", index=False)
    assert "'cat/gone.png (row 3)' is not a readable image (No such file" in refused(root / "t.csv", **told)
    assert "path = " in refused(root / "t.csv", label="kind", labels=("cat", "dog"))
    assert "column 'files' is missing; there are 'file', 'kind'" in refused(
        root / "t.csv", **told | {"path": "files"}
    )


def pixels(count: int = 12) -> tuple[np.ndarray, list[int]]:
    return np.random.default_rng(0).random((count, 64)).round(4), [i % 4 for i in range(count)]


def table(values: np.ndarray, labels: list[Any]) -> pd.DataFrame:
    return pd.DataFrame(values, columns=[f"p{i}" for i in range(values.shape[1])]).assign(label=labels)


def test_nullable_pixels_stay_what_they_are(tmp_path: Path) -> None:
    """Would catch Float64 in [0, 1] cut to whole numbers and divided by 255: almost black images."""
    values, labels = pixels()
    table(values, labels).convert_dtypes(convert_integer=False).astype({"p0": "Float64"}).to_parquet(
        tmp_path / "f.parquet"
    )
    np.testing.assert_allclose(load(tmp_path / "f.parquet").inputs.view(12, 64).numpy(), values, atol=1e-6)
    whole = (values * 255).astype(int)
    frame = table(whole, labels).convert_dtypes()
    assert str(frame["p0"].dtype) == "Int64"
    frame.to_parquet(tmp_path / "i.parquet")
    np.testing.assert_allclose(
        load(tmp_path / "i.parquet").inputs.view(12, 64).numpy(), whole / 255, atol=1e-6
    )
    frame.loc[3, "p5"] = pd.NA
    frame.to_parquet(tmp_path / "i.parquet")
    assert "row 4 of column 'p5' is empty" in refused(tmp_path / "i.parquet")


def test_pixels_with_decimal_commas_are_read_as_told_and_never_guessed(tmp_path: Path) -> None:
    values, labels = pixels()
    table(values, labels).to_csv(tmp_path / "t.csv", index=False, sep=";", decimal=",")
    found = load(tmp_path / "t.csv", separator=";", decimal=",").inputs
    np.testing.assert_allclose(found.view(12, 64).numpy(), values, atol=1e-6)
    assert 'separator = ";"' in refused(tmp_path / "t.csv")
    assert "expected numbers in every column" in refused(tmp_path / "t.csv", separator=";")


def test_text_labels_of_pixels_need_the_contracts_order(tmp_path: Path) -> None:
    values, labels = pixels()
    words = [("a", "b", "c", "d")[i] for i in labels]
    table(values, words).to_csv(tmp_path / "t.csv", index=False)
    assert "listed in order in a contract: labels" in refused(tmp_path / "t.csv")
    assert load(tmp_path / "t.csv", labels=("d", "c", "b", "a")).targets.tolist() == [3 - i for i in labels]
    np.savez(tmp_path / "t.npz", images=values.reshape(12, 8, 8), labels=np.array(words))
    assert load(tmp_path / "t.npz", labels=("d", "c", "b", "a")).targets.tolist() == [3 - i for i in labels]
    np.savez(tmp_path / "t.npz", images=values.reshape(12, 8, 8), labels=labels)
    said = Findings("x")
    assert load(tmp_path / "t.npz", findings=said, labels=("d", "c", "b", "a")).targets.tolist() == labels
    assert any("taken for places" in note for note in said.notes)


# --- .npz --------------------------------------------------------------------------------------------------------

X, Y = np.zeros((3, 8, 8), np.uint8), np.arange(3)


@pytest.mark.parametrize(
    ("arrays", "rule"),
    [
        ({"images": X.astype(bool), "labels": Y}, "images are of type bool, expected whole numbers or floats"),
        ({"images": X.astype(complex), "labels": Y}, "images are of type complex128"),
        ({"images": X.astype(str), "labels": Y}, "images are of type <U"),
        ({"images": X[:, :0, :0], "labels": Y}, "no pixels: images have the shape (3, 0, 0)"),
        ({"images": np.zeros((3, 0, 8, 8)), "labels": Y}, "no pixels"),
        ({"images": X, "labels": np.eye(3)}, "found (3, 8, 8) and (3, 3)"),
        ({"x_train": X, "y_train": Y}, "array 'images' is missing; there are 'x_train', 'y_train'"),
        ({"images": X}, "array 'labels' is missing; there are 'images'"),
        ({}, "array 'images' is missing; there are none"),
        ({"images": np.where(np.arange(3)[:, None, None] == 1, np.nan, X), "labels": Y}, "the first in image 2"),
        ({"images": X, "labels": np.array([0, np.nan, 1])}, "that of image 2 is not"),
        ({"images": X, "labels": np.array([{}, 1, 2])}, "(array 'labels' holds Python objects)"),
        ({"images": X.astype(np.uint16) + 300, "labels": Y}, "bits = 16"),
    ],
)  # fmt: skip
def test_bad_arrays_are_refused_with_the_right_reason(
    tmp_path: Path, arrays: dict[str, Any], rule: str
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    assert rule in refused(tmp_path / "x.npz")


def test_arrays_of_16_bits_are_scaled_as_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.full((3, 8, 8), 65535, np.uint16), labels=Y)
    assert load(tmp_path / "x.npz", bits=16).inputs.unique().tolist() == [1]


def test_files_that_are_no_npz_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with path.open("wb") as file:
        np.save(file, X)
    assert "not a readable .npz file (an .npy under another name" in refused(path)
    for content, reason in (
        (b"", "an empty file"),
        (b"\x80\x04.", "no .zip archive"),
        (b"PK\x03\x04xx", "damaged"),
    ):
        path.write_bytes(content)
        assert f"not a readable .npz file ({reason}" in refused(path)
    np.savez(path, images=X, labels=Y)
    whole = path.read_bytes()
    assert "not a readable .npz file (encrypted)" in refused(encrypted(path))
    path.write_bytes(whole.replace(b"\0" * 64, b"\1" * 64, 1))
    assert "not a readable .npz file (damaged or cut off)" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"no array")
        archive.writestr("labels.npy", b"no array")
    assert "not a readable .npz file ('images' is no array)" in refused(path)


def test_an_npz_that_grows_beyond_reason_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    assert "has 314,572,800 bytes when unpacked" in refused(path)


def test_no_image_changes_how_another_one_is_read(tmp_path: Path) -> None:
    """Would catch a range or size taken from the data, which example-level privacy does not allow for."""
    root = tree(tmp_path / "pics")
    plain = load(root)
    Image.fromarray(np.full((30, 30), 65535, np.uint16)).save(root / "dog" / "z.png")
    assert torch.equal(load(root).inputs[:-1], plain.inputs)


def test_what_was_done_to_the_data_is_printed_and_kept(tmp_path: Path) -> None:
    """Would catch findings that are made and dropped, or that others on the machine may read."""
    folders = [tmp_path / "public", tmp_path / "private"]
    for folder in folders:
        for file in tree(folder, ("cat", "dog"), 40).glob("*/0.png"):
            noise(16).save(file)
    changes = [f"data.public.source={folders[0]}", f"data.private.source={folders[1]}", "companies.count=3"]
    changes += ["pretraining.steps=1", "companies.alpha=100", "model.classes=2"]
    shown = io.StringIO()
    run = prepare_with_progress(load_settings("digits", changes), tmp_path / "runs", Console(file=shown))
    kept = run.read_json("data.json")
    assert kept is not None
    for side in ("public", "private"):
        note = "2 images: resized from 16x16 to 8x8"
        assert f"{side} data: {note}" in shown.getvalue()
        assert note in kept[side]["notes"]
        assert kept[side]["classes"] == {"cat": 0, "dog": 1}
    assert (run.path / "data.json").stat().st_mode & 0o077 == 0
