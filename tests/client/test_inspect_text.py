"""Looking at texts: what is said of them, and that a draft reads them."""

from __future__ import annotations

import json
import tomllib
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from fedblocks.blocks.families.ar_lm import ARLanguageModelSettings
from fedblocks.client.data.text.inspect import inspect_text
from fedblocks.client.data.text.load import load_text
from fedblocks.errors import InputError
from fedblocks.settings import DataSource
from fedblocks.settings.contract import TextContract

MODEL = ARLanguageModelSettings(sequence_length=64)
LETTER = "Sehr geehrte Damen und Herren, für die schöne Größe der Bücher danken wir. " * 3


def windows(source: Path, draft: str) -> int:
    contract = TextContract.model_validate(tomllib.loads(draft) | {"least_examples": 1})
    return len(load_text("data", DataSource(source=str(source)), MODEL, contract))


def test_a_folder_of_texts_is_described_and_its_draft_reads_it(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.txt").write_bytes((LETTER if i < 2 else f"{i} {LETTER}").encode("cp1252"))
    (tmp_path / "short.txt").write_text("kurz")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "0-checkpoint.txt").write_text(LETTER)
    found = inspect_text(str(tmp_path))
    assert found.findings.facts["documents"] == "5"
    notes = "\n".join(found.findings.notes)
    for part in ("not in UTF-8", "1 document copied", "1 document shorter", "1 hidden file", "not ASCII"):
        assert part in notes
    assert TextContract.model_validate(tomllib.loads(found.draft)).encoding is not None
    assert windows(tmp_path, found.draft) == 4 * (len(LETTER) // 64)
    assert len(found.example) == 1


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_field_of_text_is_found_and_its_gaps_are_said(kind: str, tmp_path: Path) -> None:
    records = [{"id": str(i), "mail": {"subject": "x" * 90, "body": f"{i} {LETTER}"}} for i in range(5)]
    records[3]["mail"]["body"] = None  # type: ignore[index]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    else:
        pd.DataFrame(records).to_parquet(path)
    found = inspect_text(str(path))
    contract = TextContract.model_validate(tomllib.loads(found.draft))
    assert contract.field == "mail.body"
    assert contract.missing == "drop"
    assert (
        "field 'mail.body' is taken for the text; there are id, mail.subject, mail.body"
        in found.findings.notes
    )
    assert found.findings.facts["documents"] == "4"
    assert windows(path, found.draft) == 4 * ((len(LETTER) + 3) // 64)


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "torn.jsonl").write_text('{"text": "abc"}\n{"text": "a')
    (tmp_path / "torn.zip").write_bytes(b"PK\x03\x04")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    for name in ("torn.jsonl", "torn.zip", "empty.zip", "none.txt"):
        with pytest.raises(InputError) as caught:
            inspect_text(str(tmp_path / name))
        assert len(str(caught.value).splitlines()) == 1


def test_a_built_in_text_and_a_long_line(tmp_path: Path) -> None:
    assert inspect_text("python-topics").findings.facts["documents"] == "1"
    (tmp_path / "a.txt").write_text("x" * 100_000)
    assert "the longest line has 100,000 characters" in inspect_text(str(tmp_path / "a.txt")).findings.notes
