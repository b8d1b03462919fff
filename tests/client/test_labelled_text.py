"""Labelled texts: what is read is what stands there, by the model's own tokenizer, and nothing is left out unsaid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.labelled_texts import (
    CLS,
    PAD,
    SEP,
    UNK,
    LabelledSettings,
    json_lines,
    token,
    tokenizer_folder,
)

from fedblocks.blocks.examples import Examples
from fedblocks.client.data import load_examples
from fedblocks.client.data.findings import Findings
from fedblocks.client.data.labelled_text import built_in, load, rows
from fedblocks.client.data.labelled_text.built_in import LabelledTexts
from fedblocks.client.data.labelled_text.load import load_texts
from fedblocks.client.data.looking import inspect_source
from fedblocks.client.data.text.own_tokenizer import OwnTokenizer
from fedblocks.errors import InputError
from fedblocks.settings import DataSource
from fedblocks.settings.contract import LabelledTextContract, settle

NAMES = ("no", "yes")
ROWS: list[dict[str, object]] = [
    {"text": "the cat sat", "label": "yes", "who": "Anna"},
    {"text": "a dog ran far away on the mat a cat", "label": "no", "who": "anna "},
    {"text": "zebra", "label": "no", "who": "Ben"},
    {"text": "the mat, [PAD] cat", "label": "yes", "who": "7"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tokenizer_folder(tmp_path / "model")


def read(path: Path | str, folder: Path, findings: Findings | None = None, **contract: object) -> Examples:
    told = LabelledTextContract.model_validate({"labels": NAMES, "least_examples": 1} | contract)
    model = LabelledSettings(pretrained=str(folder), classes=len(told.labels or NAMES))
    source = DataSource(source=str(path), contract=told)
    return load_examples("data", source, model, False, findings)  # type: ignore[arg-type]


def write(path: Path, table: list[dict[str, object]]) -> Path:
    """In the form that the name says."""
    if ".jsonl" in path.name:
        return json_lines(path, table)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(table), path)
        return path
    import pandas as pd

    pd.DataFrame(table).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def test_tokens_are_those_of_the_post_processor_cut_and_padded_to_the_right(
    tmp_path: Path, folder: Path
) -> None:
    """Catches the tokenizer's own padding (left) and truncation (5), a lost end token, and a class out of order."""
    found = read(write(tmp_path / "a.jsonl", ROWS), folder)
    the, cat, sat = token("the"), token("cat"), token("sat")
    assert found.inputs[0].tolist() == [CLS, the, cat, sat, SEP, PAD, PAD, PAD]
    long = [token(word) for word in ["a", "dog", "ran", "far", "away", "on"]]
    assert found.inputs[1].tolist() == [CLS, *long, SEP]
    assert found.inputs[2].tolist() == [CLS, UNK, SEP, *[PAD] * 5]
    assert found.targets.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv", "a.tsv", "folder", "a.jsonl.gz"])
def test_every_format_gives_the_same_examples(tmp_path: Path, folder: Path, name: str) -> None:
    """Catches a reader that drops, reorders or retypes cells."""
    expected = read(write(tmp_path / "known.jsonl", ROWS), folder, group="who")
    options: dict[str, object] = {"group": "who"}
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        write(path / "1.jsonl", ROWS[:2])
        write(path / "2.parquet", ROWS[2:])
    elif name.endswith(".gz"):
        import gzip

        path.write_bytes(gzip.compress((tmp_path / "known.jsonl").read_bytes()))
    else:
        write(path, ROWS)
        options |= {"separator": "\t"} if name == "a.tsv" else {}
    assert read(path, folder, **options).digest == expected.digest


def test_what_was_cut_copied_and_misspelt_is_said(tmp_path: Path, folder: Path) -> None:
    """Catches a text that is shortened in silence."""
    findings = Findings("a")
    again = [*ROWS, {"text": "zebra", "label": "yes", "who": "Ben"}]
    read(write(tmp_path / "a.jsonl", again), folder, findings, group="who")
    said = " | ".join(findings.notes)
    # [CLS] and [SEP] around 10 words are 12 tokens, of which 8 stay.
    assert "1 text of 5 cut at 8 tokens: 4 of 30 tokens left out, the longest text has 12" in said
    assert "1 text copied from others" in said
    assert "1 text copied with another label" in said
    assert "1 text spell the token that fills up" in said
    assert "1 group in column 'who' written in more than one way" in said
    assert findings.facts["classes"] == "no 2, yes 3"
    assert findings.facts["groups"] == "3 by column 'who', of 1 to 2 records each"
    assert findings.classes == {"no": 0, "yes": 1}


@pytest.mark.parametrize(
    ("row", "place", "says"),
    [
        (
            {"text": "the cat", "label": "maybe", "who": "a"},
            "line 5",
            "label 'maybe' is not one of the classes: no, yes",
        ),
        ({"text": "the cat", "who": "a"}, "line 5", "no label in 'label'"),
        ({"text": "the cat", "label": "yes"}, "line 5", "no group in 'who'"),
        ({"text": "the cat", "label": "yes", "who": " \u200b "}, "line 5", "no group in 'who'"),
        ({"text": "the cat", "label": "yes", "who": ["a"]}, "line 5", "names no group: it holds a list"),
        ({"text": "  ", "label": "yes", "who": "a"}, "line 5", "no text in 'text'"),
        ({"text": 7, "label": "yes", "who": "a"}, "line 5", "is no text"),
        ({"text": "a\0b", "label": "yes", "who": "a"}, "line 5", "holds a NUL"),
        ({"text": "\ud800", "label": "yes", "who": "a"}, "line 5", "half a character"),
    ],
)
def test_a_wrong_row_is_refused_by_line_and_value(
    tmp_path: Path, folder: Path, row: dict[str, object], place: str, says: str
) -> None:
    with pytest.raises(InputError) as refused:
        read(write(tmp_path / "a.jsonl", [*ROWS, row]), folder, group="who")
    assert place in str(refused.value)
    assert says in str(refused.value)


def test_rows_without_something_can_be_left_out_and_are_counted(tmp_path: Path, folder: Path) -> None:
    findings = Findings("a")
    more: list[dict[str, object]] = [
        {"text": "", "label": "yes", "who": "a"}, {"text": "cat", "label": None, "who": "a"},
        {"text": "cat", "label": "yes", "who": ""}, {"text": "cat", "label": "yes", "who": None},
    ]  # fmt: skip
    found = read(write(tmp_path / "a.jsonl", [*more, *ROWS]), folder, findings, group="who", missing="drop")
    assert len(found) == len(ROWS)
    assert found.groups is not None
    assert len(found.groups) == 3
    assert findings.left_out == {
        "without a text in 'text'": 1, "without a label in 'label'": 1, "without a group in 'who'": 2,
    }  # fmt: skip


def test_cells_of_a_csv_are_text_whatever_they_look_like(tmp_path: Path, folder: Path) -> None:
    """Catches "007" read as 7, and a class or a text that is called like a missing cell."""
    (tmp_path / "a.csv").write_text('text,label,who\nNA,None,007\n"a cat\nsat",None,7\nmat,nan,7.0\n')
    found = read(tmp_path / "a.csv", folder, labels=("None", "nan"), group="who")
    assert found.targets.tolist() == [0, 0, 1]
    assert found.groups is not None
    assert len(found.groups) == 3


def test_a_label_that_is_a_number_needs_no_contract(tmp_path: Path, folder: Path) -> None:
    """Whole numbers are classes as they are; others are refused with what to write."""
    table: list[dict[str, object]] = [{"text": "cat", "label": i % 2} for i in range(10)]
    source = DataSource(source=str(write(tmp_path / "a.jsonl", table)))
    model = LabelledSettings(pretrained=str(folder))
    found = load_examples("data", source, model, False)  # type: ignore[arg-type]
    assert found.targets.tolist() == [i % 2 for i in range(10)]
    for wrong, says in ((2, "none of 0 to 1"), ("yes", "labels = ["), (0.5, "no whole number")):
        write(tmp_path / "a.jsonl", [*table, {"text": "cat", "label": wrong}])
        with pytest.raises(InputError, match="line 11") as refused:
            load_examples("data", source, model, False)  # type: ignore[arg-type]
        assert says in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"vocabulary": 13}, "model.vocabulary=13: the tokenizer has 14 tokens"),
        ({"pad": 3}, "model.pad=3: the tokenizer fills up with token 0"),
        ({"sequence_length": 2}, "model.sequence_length=2"),
        ({"classes": 3}, "model.classes=3: there are 2: no, yes"),
        ({"pretrained": "nowhere"}, "has no tokenizer.json"),
    ],
)
def test_a_model_that_the_tokenizer_is_not_of_is_refused(
    tmp_path: Path, folder: Path, settings: dict[str, object], says: str
) -> None:
    model = LabelledSettings.model_validate({"pretrained": str(folder)} | settings)
    contract = LabelledTextContract(labels=NAMES, least_examples=1)
    source = DataSource(source=str(write(tmp_path / "a.jsonl", ROWS)), contract=contract)
    with pytest.raises(InputError) as refused:
        load_examples("data", source, model, False)  # type: ignore[arg-type]
    assert says in str(refused.value)


def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(InputError, match=r"not a tokenizer\.json"):
        OwnTokenizer.of("model.pretrained", tmp_path)


def test_padding_gives_what_tokenizing_each_alone_gives(folder: Path) -> None:
    """Catches the state of one pass (truncation) that stays for the next."""
    tokenizer = OwnTokenizer.of("model.pretrained", folder)
    texts = ["cat " * n for n in (0, 1, 9, 3, 30, 2)]
    tokens, lengths = tokenizer.padded(texts, 6, pad=PAD)
    alone = np.concatenate([tokenizer.padded([text], 6, pad=PAD)[0] for text in texts])
    assert (tokens == alone).all()
    assert lengths.tolist() == [2, 3, 11, 5, 32, 4]
    assert tokenizer.lengths(texts).tolist() == lengths.tolist()
    assert tokenizer.decode(tokens[3]) == "cat cat cat"


def test_texts_to_predict_need_no_label(tmp_path: Path, folder: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": row["text"]} for row in ROWS])
    model = LabelledSettings(pretrained=str(folder))
    places, inputs = load_texts("input", DataSource(source=str(path)), model, None, Findings("a"))
    assert places == ["line 1", "line 2", "line 3", "line 4"]
    assert torch.equal(inputs, read(write(tmp_path / "b.jsonl", ROWS), folder).inputs)


def test_a_built_in_set_brings_its_classes_and_groups(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = LabelledTexts(("cat", "dog ran", "mat"), ("b", "a", "b"), ("a", "b"), ("x", "y", "X"))
    for module in (built_in, load, rows):
        monkeypatch.setitem(module.BUILT_IN, "small", lambda: small)
    findings = Findings("small")
    found = read("small", folder, findings, labels=None, group="author")
    assert found.targets.tolist() == [1, 0, 1]
    assert findings.classes == {"a": 0, "b": 1}
    assert found.groups is not None
    assert found.groups.sizes.sum() == 3
    assert len(found.groups) == 2


def test_a_contract_names_each_field_and_class_once() -> None:
    for wrong in (
        {"label": "text"}, {"group": "label"}, {"labels": ["a"]}, {"labels": ["a", " a"]}, {"labels": ["a", ""]},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"twice|two purposes|two or more|without a name"):
            LabelledTextContract.model_validate(wrong)


def test_a_contract_settles_the_classes() -> None:
    raw = {
        "data": {"contract": {"kind": "labelled-text", "labels": ["a", "b", "c"]}, "public": {"source": "x"}}
    }
    settle(raw)
    assert raw["model"] == {"classes": 3}


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_a_drafted_contract_reads_the_file_it_was_drafted_from(
    tmp_path: Path, folder: Path, name: str
) -> None:
    """Catches a draft that a run would refuse, or that reads other columns."""
    import tomllib

    table: list[dict[str, object]] = [
        {
            "number": i,
            "review": "the cat sat on a mat " * (1 + i % 5),
            "label": NAMES[i % 2],
            "user_id": f"u{i % 7}",
        }
        for i in range(40)
    ]
    path = write(tmp_path / name, table)
    found = inspect_source(str(path), "labelled-text")
    raw = tomllib.loads(found.draft)
    assert raw == {
        "kind": "labelled-text", "text": "review", "group": "user_id", "labels": list(NAMES),
    }  # fmt: skip
    examples = read(path, folder, **raw)
    assert examples.targets.tolist() == [i % 2 for i in range(40)]
    assert examples.groups is not None
    assert len(examples.groups) == 7
    assert json.loads(json.dumps(found.to_json()))["facts"]["groups"] == "7 by 'user_id', of up to 6 texts"


def test_texts_with_a_label_are_looked_at_as_such(tmp_path: Path) -> None:
    """And texts beside which stands something else are documents as before."""
    labelled = write(
        tmp_path / "a.jsonl", [row | {"text": f"{row['text']} {i}"} for i in range(5) for row in ROWS]
    )
    plain = write(tmp_path / "b.jsonl", [{"text": f"the cat {i}", "title": f"t{i}"} for i in range(20)])
    assert inspect_source(str(labelled)).findings.facts["looked at as"].startswith("labelled-text")
    assert inspect_source(str(plain)).findings.facts["looked at as"].startswith("text")
