"""Texts as people have them: encodings, hidden copies, archives, JSON lines; nothing twice, nothing in silence."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from fedblocks.client.data.findings import Findings
from fedblocks.client.data.text.documents import documents
from fedblocks.errors import InputError
from fedblocks.settings.contract import TextContract

SENTENCE = "Größer als zuvor: naïve café, 东京."


def read(source: Path | str, findings: Findings | None = None, **told: Any) -> list[str]:
    """Every document as a whole."""
    found = documents("data", str(source), TextContract.model_validate(told), findings or Findings("t"))
    return ["".join(pieces) for pieces in found]


def lines(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_byte_order_mark_tells_the_encoding(kind: str, encoding: str, tmp_path: Path) -> None:
    """Would catch a mark read as text, or as a fault in the first line of JSON."""
    text = SENTENCE if kind == "txt" else json.dumps({"text": SENTENCE}, ensure_ascii=False)
    (tmp_path / f"a.{kind}").write_bytes(text.encode(encoding))
    said = Findings("t")
    assert read(tmp_path / f"a.{kind}", said) == [f"{SENTENCE}\n"]
    assert ("byte order mark" in "".join(said.notes)) == (encoding in ("utf-16", "utf-32"))


def test_marks_stay_where_files_were_joined(tmp_path: Path) -> None:
    one = json.dumps({"text": "a"}).encode("utf-8-sig") + b"\n"
    (tmp_path / "a.jsonl").write_bytes(one + one)
    assert read(tmp_path / "a.jsonl") == ["a\n", "a\n"]


def test_an_encoding_is_read_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Größe\r\nétage".encode("cp1252"))
    with pytest.raises(InputError, match=r"not UTF-8 \(byte 2\) in line 1; name the encoding in a contract"):
        read(tmp_path / "a.txt")
    assert read(tmp_path / "a.txt", encoding="cp1252") == ["Größe\nétage\n"]
    for unknown in ("klingon", "rot13", "base64"):
        with pytest.raises(InputError, match="no such encoding"):
            read(tmp_path / "a.txt", encoding=unknown)


@pytest.mark.parametrize("at", [0, 7, 8190, 1 << 20, (1 << 20) + 1, 3 << 20])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_the_place_of_a_wrong_byte_is_that_in_the_file(at: int, mark: bytes, tmp_path: Path) -> None:
    """Would catch a place within the piece that was read last, and one that a mark or a wide character shifts."""
    line = "é" * 40 + "\n"
    start = (line * (at // len(line.encode()) + 1)).encode()[:at].decode("utf-8", "ignore").encode()
    (tmp_path / "a.txt").write_bytes(mark + start + b"\xff" + line.encode() * 9)
    newlines = start.count(b"\n") + 1
    place = rf"\(byte {len(mark) + len(start)}\) in line {newlines};"
    with pytest.raises(InputError, match=place):
        read(tmp_path / "a.txt")


def test_a_wrong_byte_in_json_lines_is_named_by_line(tmp_path: Path) -> None:
    good = lines({"text": "The quick brown fox"}) * 900
    (tmp_path / "a.jsonl").write_bytes(good + b'{"text": "caf\xe9"}\n')
    with pytest.raises(InputError, match=rf"\(byte {len(good) + 13}\) in line 901"):
        read(tmp_path / "a.jsonl")


def test_what_nobody_sees_is_no_text(tmp_path: Path) -> None:
    """Would catch a document that counts twice since an editor, or a Mac, keeps a copy."""
    names = (
        "a.txt",
        ".ipynb_checkpoints/a-checkpoint.txt",
        "._a.txt",
        "b/.cache/x.md",
        "__MACOSX/a.txt",
        "~$a.txt",
    )
    for name in names:
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text("abc")
    (tmp_path / "texts" / "UPPER.TXT").write_text("upper")
    (tmp_path / "texts" / "picture.png").write_bytes(b"\xff")
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        for path in sorted((tmp_path / "texts").rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(tmp_path))
    for source in ("texts", "texts.zip"):
        said = Findings("t")
        assert sorted(read(tmp_path / source, said)) == ["abc\n", "upper\n"]
        assert any(note.startswith("5 hidden files not read") for note in said.notes)
        assert "1 file of other kinds not read: .png (1)" in said.notes


def test_a_source_may_itself_lie_in_a_hidden_folder(tmp_path: Path) -> None:
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "a.txt").write_text("abc")
    assert read(tmp_path / ".data") == ["abc\n"]


def test_compressed_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"abc"))
    with pa.output_stream(str(tmp_path / "b.jsonl.zst"), compression="zstd") as stream:
        stream.write(lines({"text": "def"}))
    assert read(tmp_path) == ["abc\n", "def\n"]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"abc" * 999)[:-20])
    with pytest.raises(InputError, match=r"a\.txt\.gz.*is damaged"):
        read(tmp_path)


@pytest.mark.parametrize("cut", ["middle", "end", "content"])
def test_a_damaged_archive_is_refused_in_one_line(cut: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "".join(f"{i} green bottles\n" for i in range(999)))
    raw = bytearray(path.read_bytes())
    if cut == "content":
        raw[200:240] = bytes(40)
    path.write_bytes(raw if cut == "content" else raw[: len(raw) // 2] if cut == "middle" else raw[:-5])
    with pytest.raises(InputError, match="damaged") as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "abc")
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    raw[6] |= 1  # the flag stands in the member's header and in the directory
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(raw)
    with pytest.raises(InputError, match=r"a\.txt in it is encrypted; unpack it"):
        read(tmp_path / "a.zip")


def test_a_packing_that_is_not_read_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "abc")
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    raw[8] = raw[raw.index(b"PK\x01\x02") + 10] = 9  # Deflate64, as Windows packs large files
    (tmp_path / "a.zip").write_bytes(raw)
    with pytest.raises(InputError, match="packed in a way that is not read"):
        read(tmp_path / "a.zip")


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    zeros = b" " * (1 << 20)
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.txt", "w") as member,
    ):
        for _ in range(80):
            member.write(zeros)
    with pytest.raises(InputError, match=r"would unpack to 83,886,080 bytes"):
        read(tmp_path / "a.zip")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(zeros * 80))
    with pytest.raises(InputError, match=r"unpacks to over 100 times its size"):
        read(tmp_path / "a.txt.gz")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt", b"some\0text", r"holds a NUL \(character 4\)"),
        ("a.txt", SENTENCE.encode("utf-16-le"), "not UTF-8|holds a NUL"),
        ("a.jsonl", lines({"text": "a"}, {"text": None}), "line 2: no text in field 'text'"),
        ("a.jsonl", lines({"text": "a"}, {"body": "b"}), "line 2: no text in field 'text'"),
        ("a.jsonl", lines({"text": "a"}, {"text": 3}), "line 2: field 'text' is no text"),
        ("a.jsonl", lines({"text": "a\0b"}), "line 1: field 'text' holds a NUL"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "secret', r"line 3 is not JSON.*cut short"),
        ("a.jsonl", lines(["a"]), "line 1 is no JSON object"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "line 1 is (nested too deeply|not JSON)"),
        ("a.csv", b"text\nabc\n", "is no text; save its text as"),
        ("a.docx", b"PK", "is no text; save its text as"),
        ("a.zip", b"", r"not a readable \.zip file"),
    ],
)
def test_what_is_no_text_is_refused_by_its_place(
    name: str, content: bytes, complaint: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=complaint) as caught:
        read(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1
    assert "secret" not in str(caught.value)


def test_a_field_is_found_by_its_path(tmp_path: Path) -> None:
    """Would catch a path that only one of the formats follows, or one that takes a name's point for a step."""
    records = [{"body": {"text": "a", "id": 1}, "title": "x"}, {"body": {"text": "b", "id": 2}, "title": "y"}]
    (tmp_path / "a.jsonl").write_bytes(lines(*records))
    pd.DataFrame(records).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "flat.jsonl").write_bytes(lines({"body.text": "a"}, {"body.text": "b"}))
    pd.DataFrame({"body.text": ["a", "b"]}).to_parquet(tmp_path / "flat.parquet")
    for name in ("a.jsonl", "a.parquet", "flat.jsonl", "flat.parquet"):
        assert read(tmp_path / name, field="body.text") == ["a\n", "b\n"], name
        with pytest.raises(InputError, match="'text'"):
            read(tmp_path / name)


def test_documents_without_text_are_dropped_as_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "a"}, {"text": None}, {}))
    pd.DataFrame({"text": ["a", None, None]}).to_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        said = Findings("t")
        assert read(tmp_path / name, said, missing="drop") == ["a\n"]
        assert "2 documents without text left out" in said.notes
        with pytest.raises(InputError, match=r'(line|row) 2: .*missing = "drop"'):
            read(tmp_path / name)


def test_lines_of_any_length_are_read(tmp_path: Path) -> None:
    long = "x" * (1 << 24) + "y"  # longer than a piece
    (tmp_path / "a.txt").write_text(long)
    assert read(tmp_path / "a.txt") == [f"{long}\n"]
    (tmp_path / "a.jsonl").write_bytes(lines({"text": long}))
    assert read(tmp_path / "a.jsonl") == [f"{long}\n"]
