"""Text to tokens: every source gives the same windows, tokenizers invert, bad text is refused by name."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedblocks.blocks.families.ar_lm import ARLanguageModelSettings
from fedblocks.client.data import load_examples
from fedblocks.client.data.findings import Findings
from fedblocks.client.data.text.load import load_text
from fedblocks.client.data.text.tokenizer import CHARACTERS, Tokenizer
from fedblocks.errors import InputError
from fedblocks.settings import DataSource
from fedblocks.settings.contract import SeriesContract, TextContract

FIELD = "data.private.source"


def load(
    path: Path | str,
    contract: TextContract | None = None,
    findings: Findings | None = None,
    **options: object,
) -> torch.Tensor:
    settings = ARLanguageModelSettings.model_validate({"sequence_length": 8} | options)
    return load_text(FIELD, DataSource(source=str(path)), settings, contract, findings)


def written(folder: Path, kind: str, documents: list[str]) -> str:
    """The same documents in a folder, as JSON lines, as a table or in an archive."""
    if kind == "jsonl":
        text = "".join(json.dumps({"text": d}) + "\n" for d in documents)
        (folder / "a.jsonl").write_text(text, "utf-8")
    elif kind == "parquet":
        pd.DataFrame({"text": documents}).to_parquet(folder / "a.parquet")
    elif kind == "zip":
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            for i, document in enumerate(documents):
                archive.writestr(f"in/{i}.md", document)
    else:
        (folder / "folder").mkdir()
        for i, document in enumerate(documents):
            (folder / "folder" / f"{i}.rst").write_text(document, "utf-8")
        return str(folder / "folder")
    return str(folder / f"a.{kind}")


def read(windows: torch.Tensor, name: str = "ascii") -> str:
    return Tokenizer.of("tokenizer", name).decode(windows.flatten().numpy())


@pytest.mark.parametrize("name", ["ascii", "text8"])
def test_characters_survive_a_round_trip(name: str) -> None:
    """Would catch a shifted or doubled place in the table of characters."""
    tokenizer = Tokenizer.of("tokenizer", name)

    @given(st.text(CHARACTERS[name]))
    def inverts(text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text)) == text

    inverts()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_survive_a_round_trip(text: str) -> None:
    tokenizer = Tokenizer.of("tokenizer", "bytes")
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(("name", "size"), [("ascii", 97), ("text8", 27), ("bytes", 256)])
def test_tokens_stay_in_range_and_one_a_character(name: str, size: int) -> None:
    """Would catch an unknown character that runs off the vocabulary, or that is dropped."""
    tokenizer = Tokenizer.of("tokenizer", name)
    assert tokenizer.vocabulary == size

    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def in_range(text: str) -> None:
        tokens = tokenizer.encode(text)
        assert tokens.dtype == np.int64
        assert ((tokens >= 0) & (tokens < size)).all()
        if name == "ascii":
            assert len(tokens) == len(text)

    in_range()


def test_a_trained_tokenizer_is_read_from_disk(tmp_path: Path) -> None:
    """Would catch special tokens slipped in between windows, or a vocabulary larger than the model's."""
    from tokenizers import Tokenizer as Trained
    from tokenizers import decoders, models, pre_tokenizers, trainers

    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        ["the cat sat on the mat"] * 9,
        trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False),
    )
    path = tmp_path / "tokenizer.json"
    trained.save(str(path))
    tokenizer = Tokenizer.of("tokenizer", str(path))
    text = "the mat sat on thé cat\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    (tmp_path / "a.txt").write_text(text * 9, "utf-8")
    windows = load(tmp_path / "a.txt", tokenizer=str(path), vocabulary=tokenizer.vocabulary)
    assert (text * 9).startswith(read(windows, str(path)).rstrip("\ufffd"))
    with pytest.raises(InputError, match="vocabulary"):
        load(tmp_path / "a.txt", tokenizer=str(path), vocabulary=200)
    path.write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Tokenizer.of("tokenizer", str(path))


def test_all_formats_hold_the_same_windows(tmp_path: Path) -> None:
    """Would catch a format that drops, doubles or reorders documents."""
    documents = [f"document {i}: {'word ' * i}end" for i in range(7)]
    text = "".join(f"{d}\n" for d in documents)
    folder, shards = tmp_path / "folder", tmp_path / "lm1b" / "training"
    folder.mkdir()
    shards.mkdir(parents=True)
    for i, document in enumerate(documents):
        (folder / f"{i}.txt").write_text(document, "utf-8")  # without its newline: it is put back
        (shards / f"news.en-0000{i}-of-00100").write_text(f"{document}\n", "utf-8")
    (folder / "picture.png").write_bytes(b"\xff")
    (tmp_path / "a.txt").write_text(text, "utf-8")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in documents), "utf-8")
    pd.DataFrame({"text": documents}).to_parquet(tmp_path / "a.parquet")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", text)
    reference = load(tmp_path / "a.txt")
    assert reference.shape == (len(text) // 8, 8)
    assert read(reference) == text[: len(text) // 8 * 8]
    for other in ("lm1b", "a.zip"):
        assert torch.equal(load(tmp_path / other), reference), other
    for other in ("folder", "a.jsonl", "a.parquet"):
        across = TextContract(across_documents=True)
        assert torch.equal(load(tmp_path / other, across), reference), other


@pytest.mark.parametrize("kind", ["folder", "jsonl", "parquet", "zip"])
def test_documents_stay_apart(kind: str, tmp_path: Path) -> None:
    """Would catch a window that holds two people's texts, and a document that goes in silence."""
    documents = ["a" * 20, "b" * 7, "c" * 6, "d" * 16, "d" * 16]
    source = written(tmp_path, kind, documents)
    said = Findings("t")
    windows = load(source, findings=said)
    assert [read(window) for window in windows] == ["aaaaaaaa", "aaaaaaaa", "bbbbbbb\n", *["dddddddd"] * 4]
    assert said.facts["documents"] == "5, of 70 characters"
    notes = "\n".join(said.notes)
    assert "1 document copied from others" in notes
    assert "1 document shorter than a window of 8 left out" in notes
    assert "7 tokens at the ends of documents" in notes  # 5 of a, 1 of each d
    together = load(source, TextContract(across_documents=True, least_examples=1))
    assert read(together) == "".join(f"{d}\n" for d in documents)[: 8 * len(together)]
    assert len(together) == 70 // 8


def test_texts_that_are_all_too_short_are_refused_with_what_helps(tmp_path: Path) -> None:
    source = written(tmp_path, "jsonl", ["abc", "def", "ghi"])
    with pytest.raises(InputError, match=r"none of 3 documents.*across_documents = true"):
        load(source)
    assert len(load(source, TextContract(across_documents=True, least_examples=1))) == 1
    with pytest.raises(InputError, match=r"1 window of 8 tokens, contract\.least_examples=10"):
        load(source, TextContract(across_documents=True))


def test_a_contract_of_other_data_is_refused(tmp_path: Path) -> None:
    source = DataSource(source=written(tmp_path, "jsonl", ["abc" * 9]), contract=SeriesContract())
    with pytest.raises(InputError, match=r"data\.private\.contract\.kind"):
        load_examples(FIELD, source, ARLanguageModelSettings(), False)


def test_characters_that_the_tokenizer_does_not_tell_apart_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("größer als zuvor", "utf-8")
    said = Findings("t")
    load(tmp_path / "a.txt", findings=said)
    assert "2 characters that ASCII does not have read as one and the same token" in said.notes


def test_built_in_texts_differ_and_are_the_same_every_time() -> None:
    """Would catch a public text that is the private one, or an order that depends on the file system."""
    topics, docstrings = (load(s, sequence_length=64) for s in ("python-topics", "python-docstrings"))
    assert len(topics) > 5_000
    assert len(docstrings) > 20_000
    assert torch.equal(docstrings, load("python-docstrings", sequence_length=64))
    public = {tuple(row) for row in topics.tolist()}
    shared = sum(tuple(row) in public for row in docstrings.tolist())
    assert shared < 0.001 * len(docstrings)


def test_examples_are_tokens_in_and_the_same_tokens_out() -> None:
    model = ARLanguageModelSettings(sequence_length=32)
    found = load_examples(FIELD, DataSource(source="python-topics"), model, False)
    assert found.inputs.shape[1:] == (32,)
    assert torch.equal(found.inputs, found.targets)


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("empty.txt", b"", "0 tokens"),
        ("short.txt", b"abc", "4 tokens"),
        ("latin.txt", b"caf\xe9 and more than a window", r"not UTF-8 \(byte 3\)"),
        ("broken.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "line 2"),
        ("surrogate.jsonl", b'{"text": "\\ud800"}\n', "line 1"),
        ("not.parquet", b"PAR1 no", "parquet"),
        ("not.zip", b"no", "zip"),
    ],
)
def test_bad_text_is_refused_by_field_and_rule(tmp_path: Path, name: str, content: bytes, rule: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rule) as refused:
        load(tmp_path / name)
    assert FIELD in str(refused.value)


def test_what_is_missing_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"body": ["a"]}).to_parquet(tmp_path / "a.parquet")
    for path, rule in (
        (tmp_path / "none.txt", "built-in"),
        (tmp_path / "a.parquet", "'text'"),
        (tmp_path / "empty", "no .txt"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=rule):
            load(path)
