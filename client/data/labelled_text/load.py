"""Labelled texts as a pretrained classifier reads them: tokens of its own tokenizer, and the number of the class.

A text is one example: it is cut at the model's length, and how many were cut, and by how much, is said. Nothing is
taken of all texts together, so no example changes how another one is read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ....blocks.examples import Examples
from ....errors import InputError
from ....settings import DataSource
from ....settings.contract import LabelledTextContract
from ..findings import Findings, counted, some
from ..group_keys import GroupKeys
from ..images.class_labels import clean
from ..text.own_tokenizer import OwnTokenizer, Tokens, folder_of
from .built_in import BUILT_IN
from .rows import Row, rows_of

_AT_ONCE = 1024
_DIGEST_BYTES = 16


class LabelledTextModel(Protocol):
    """What the settings of a family say of the texts that it reads."""

    @property
    def pretrained(self) -> str: ...
    @property
    def sequence_length(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def pad(self) -> int | None: ...
    @property
    def classes(self) -> int: ...


@dataclass
class _Seen:
    """What has been read: `cut` texts are longer than the model's length, by `cut_tokens` together."""

    texts: int = 0
    tokens: int = 0
    longest: int = 0
    cut: int = 0
    cut_tokens: int = 0
    inner_pads: int = 0
    copies: int = 0
    other_labels: int = 0
    digests: dict[bytes, int] = field(default_factory=dict)


def load_labelled_text(
    field: str,
    source: DataSource,
    model: LabelledTextModel,
    contract: LabelledTextContract | None,
    findings: Findings,
) -> Examples:
    """inputs (N, sequence_length) int64 tokens, targets (N,) int64 classes; groups where the contract names them.

    Raises: InputError naming the line or row of a text, label or group that is missing or wrong, or what of the
    model does not fit its tokenizer or the contract.
    """
    told = contract or LabelledTextContract(label=source.label)
    tokenizer, pad = tokenizer_of(model)
    reading = _Reading(field, source.source, told, model.classes, findings)
    seen, tokens, labels = _Seen(), [np.empty((0, model.sequence_length), np.int64)], list[int]()
    waiting: list[str] = []

    def encode() -> None:
        found, lengths = tokenizer.padded(waiting, model.sequence_length, pad)
        _count(seen, waiting, labels[len(labels) - len(waiting) :], lengths, found, pad)
        tokens.append(found)
        waiting.clear()

    for row in rows_of(field, source.source, told, findings):
        read = reading.read(row)
        if read is not None:
            waiting.append(read[0])
            labels.append(read[1])
            if len(waiting) == _AT_ONCE:
                encode()
    encode()
    groups = None if reading.keys is None else reading.keys.groups(findings)
    examples = Examples(
        torch.from_numpy(np.concatenate(tokens)), torch.tensor(labels, dtype=torch.int64), groups
    )
    reading.say(labels)
    _say(findings, seen, model)
    units = len(examples) if groups is None else len(groups)
    if units < told.least_examples:
        what = counted(units, "text" if groups is None else "group")
        rule = f"{what} can be used, contract.least_examples={told.least_examples}"
        raise InputError(field, source.source, rule)
    return examples


def load_texts(
    field: str,
    source: DataSource,
    model: LabelledTextModel,
    contract: LabelledTextContract | None,
    findings: Findings,
) -> tuple[list[str], Tensor]:
    """The texts of a source without labels, each by its place, and inputs (N, sequence_length) int64, as a prediction
    needs them; raises as `load_labelled_text`."""
    told = contract or LabelledTextContract()
    tokenizer, pad = tokenizer_of(model)
    reading = _Reading(field, source.source, told, model.classes, findings)
    kept = [
        (row.place, text)
        for row in rows_of(field, source.source, told, findings, labelled=False)
        if (text := reading.text(row)) is not None
    ]
    if not kept:
        raise InputError(field, source.source, "no text that can be used")
    found, lengths = tokenizer.padded([text for _, text in kept], model.sequence_length, pad)
    seen = _Seen()
    _count(seen, [text for _, text in kept], [0] * len(kept), lengths, found, pad)
    _say(findings, seen, model)
    return [place for place, _ in kept], torch.from_numpy(found)


def tokenizer_of(model: LabelledTextModel) -> tuple[OwnTokenizer, int]:
    """The model's own tokenizer, checked against its settings, and the token that fills up short texts."""
    tokenizer = OwnTokenizer.of("model.pretrained", folder_of(model.pretrained))
    tokenizer.check("model", vocabulary=model.vocabulary, length=model.sequence_length, pad=model.pad)
    pad = tokenizer.pad if model.pad is None else model.pad
    if pad is None or not 0 <= pad < model.vocabulary:
        rule = f"expected a token below {model.vocabulary} that fills up short texts"
        raise InputError("model.pad", model.pad, rule)
    return tokenizer, pad


class _Reading:
    """Rows by the contract. `left_out` are counted in the findings."""

    def __init__(
        self, field: str, source: str, contract: LabelledTextContract, classes: int, findings: Findings
    ) -> None:
        self.field, self.source, self.contract, self.findings = field, source, contract, findings
        self.keys = None if contract.group is None else GroupKeys(contract.group)
        names = contract.labels
        if names is None and source in BUILT_IN:
            names = BUILT_IN[source]().names
        self.names = None if names is None else [clean(name.strip()) for name in names]
        self.classes = classes
        if self.names is not None:
            if len(self.names) != classes:
                raise InputError("model.classes", classes, f"there are {len(self.names)}: {some(self.names)}")
            findings.classes.update({name: i for i, name in enumerate(self.names)})
            self._index = {name: i for i, name in enumerate(self.names)}

    def read(self, row: Row) -> tuple[str, int] | None:
        """Text and class, and its group is kept; none where the row is left out."""
        text = self.text(row)
        if text is None:
            return None
        label = self._label(row)
        if label is None:
            return None
        if self.keys is not None:
            try:
                digest = self.keys.digest(row.group)
            except TypeError as error:
                raise self._wrong(
                    row, f"field {self.keys.column!r} names no group: it holds a {error}"
                ) from None
            if digest is None:
                self._missing(row, "group", self.keys.column)
                return None
            self.keys.add(digest)
        return text, label

    def text(self, row: Row) -> str | None:
        name, found = self.contract.text, row.text
        if (
            found is None
            or (isinstance(found, float) and found != found)
            or (isinstance(found, str) and not found.strip())
        ):
            self._missing(row, "text", name)
            return None
        if not isinstance(found, str):
            raise self._wrong(row, f"field {name!r} is no text")
        if "\0" in found:
            raise self._wrong(row, f"field {name!r} holds a NUL")
        try:
            found.encode("utf-8")
        except UnicodeEncodeError:
            raise self._wrong(row, f"field {name!r} holds half a character (a lone surrogate)") from None
        return found

    def _label(self, row: Row) -> int | None:
        written = _as_text(row.label)
        if not written:
            self._missing(row, "label", self.contract.label)
            return None
        if self.names is not None:
            if written not in self._index:
                raise self._wrong(
                    row, f"label {written[:40]!r} is not one of the classes: {some(self.names)}"
                )
            return self._index[written]
        if not written.isdecimal() or not written.isascii():
            how = 'list the classes in order in a contract: labels = ["complaint", "praise"]'
            raise self._wrong(row, f"label {written[:40]!r} is no whole number; {how}")
        if int(written) >= self.classes:
            raise self._wrong(row, f"label {written[:40]} is none of 0 to {self.classes - 1}")
        return int(written)

    def _missing(self, row: Row, what: str, name: str) -> None:
        if self.contract.missing == "refuse":
            raise self._wrong(
                row, f'no {what} in {name!r}; name the field, or say missing = "drop", in a contract'
            )
        self.findings.leave_out(f"without a {what} in {name!r}", 1)

    def _wrong(self, row: Row, rule: str) -> InputError:
        return InputError(self.field, self.source, f"{row.place}: {rule}")

    def say(self, labels: list[int]) -> None:
        counts = np.bincount(np.array(labels, dtype=np.int64), minlength=self.classes)
        named = self.names or [str(i) for i in range(self.classes)]
        self.findings.fact("classes", some((f"{n} {c:,}" for n, c in zip(named, counts, strict=True)), 24))
        if labels and (counts == 0).any():
            absent = [name for name, count in zip(named, counts, strict=True) if not count]
            self.findings.note(f"no text of {some(absent)}")
        for reason, rows in self.findings.left_out.items():
            self.findings.note(f"{counted(rows, 'row')} left out: {reason}")


def _as_text(value: object) -> str:
    """A label as it is compared; empty where there is none."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return clean(value.decode("utf-8", "backslashreplace").strip())
    return clean(str(value).strip())


def _count(
    seen: _Seen, texts: list[str], labels: list[int], lengths: Tokens, tokens: Tokens, pad: int
) -> None:
    if not texts:
        return
    length = tokens.shape[1]
    seen.texts += len(texts)
    seen.tokens += int(lengths.sum())
    seen.longest = max(seen.longest, int(lengths.max()))
    seen.cut += int((lengths > length).sum())
    seen.cut_tokens += int(np.maximum(lengths - length, 0).sum())
    within = np.arange(length) < np.minimum(lengths, length)[:, None]
    seen.inner_pads += int(((tokens == pad) & within).any(axis=1).sum())
    for text, label in zip(texts, labels, strict=True):
        digest = hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()
        before = seen.digests.setdefault(digest, -1)
        seen.copies += before >= 0
        seen.other_labels += before >= 0 and before != label
        seen.digests[digest] = label


def _say(findings: Findings, seen: _Seen, model: LabelledTextModel) -> None:
    length = model.sequence_length
    findings.fact("texts", f"{seen.texts:,}, of {seen.tokens:,} tokens of the model's own tokenizer")
    findings.fact("examples", f"{seen.texts:,} of {length} tokens each, short ones filled up")
    if seen.cut:
        findings.note(
            f"{counted(seen.cut, 'text')} of {seen.texts:,} cut at {length} tokens: {seen.cut_tokens:,} of "
            f"{seen.tokens:,} tokens left out, the longest text has {seen.longest:,}"
        )
    if seen.copies:
        findings.note(
            f"{counted(seen.copies, 'text')} copied from others; each copy counts as another example"
        )
    if seen.other_labels:
        findings.note(f"{counted(seen.other_labels, 'text')} copied with another label")
    if seen.inner_pads:
        findings.note(
            f"{counted(seen.inner_pads, 'text')} spell the token that fills up, and the model passes over it"
        )
