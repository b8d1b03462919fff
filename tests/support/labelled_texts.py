"""A small tokenizer, settings of a model that reads labelled texts with it, and files of such texts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from fedblocks.blocks.settings import DataKind, TransformerSettings

WORDS = ("the", "cat", "sat", "on", "a", "mat", "dog", "ran", "far", "away")
PAD, CLS, SEP, UNK = range(4)
VOCABULARY = 4 + len(WORDS)


class LabelledSettings(TransformerSettings):
    """As a pretrained text classifier's, but of a folder with nothing but a tokenizer."""

    connector: ClassVar[str] = "labelled-text"
    label_side = "targets"

    family: Literal["stand-in"] = "stand-in"
    pretrained: str
    sequence_length: int = 8
    vocabulary: int = VOCABULARY
    pad: int = PAD
    classes: int = 2

    @property
    def kind(self) -> DataKind:
        tokens = (self.sequence_length,)
        return DataKind(inputs=tokens, input_classes=self.vocabulary, targets=(), target_classes=self.classes)


def token(word: str) -> int:
    return 4 + WORDS.index(word)


def tokenizer_folder(folder: Path, *, pad: int | None = PAD, truncation: int | None = 5) -> Path:
    """tokenizer.json of a word a token, [CLS] text [SEP]; its own padding and truncation are not the model's."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    made.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    if pad is not None:
        made.enable_padding(direction="left", pad_id=pad, pad_token="[PAD]", length=6)
    if truncation is not None:
        made.enable_truncation(truncation)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder


def json_lines(path: Path, rows: Iterable[dict[str, object]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return path
