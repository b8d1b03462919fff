"""Looking at labelled texts before they are used: classes, lengths, copies, groups, and a contract drafted.

The model's tokenizer is not asked, so lengths are in words. Of a large source its beginning is looked at.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ....errors import InputError
from ....settings.contract import FileContract, LabelledTextContract
from ..draft import Inspection, contract_text
from ..findings import Findings, counted, on_one_line, some
from ..group_keys import folded, name_of
from ..images.class_labels import in_order
from ..tables.csv_files import CSV, inner_suffix
from ..tables.database import is_database
from ..tables.frames import is_table, read_frame
from ..tables.inspect import LABELS, how_it_is_written
from ..text.files import LINES, files_of
from ..text.inspect import _records, _texts
from .built_in import BUILT_IN
from .load import _as_text
from .rows import Row, rows_of

MOST = 200_000  # rows that are looked at
_SAMPLE = 1_000
MOST_CLASSES = 200
_TEXT_NAMES = ("text", "content", "body", "sentence", "message", "review", "comment")
_GROUP_NAMES = (
    "author",
    "user",
    "person",
    "patient",
    "customer",
    "client",
    "speaker",
    "group",
    "document",
    "account",
)
_SUFFIXES = ("", "_id", "id", "_name")


def is_labelled(source: str) -> bool:
    """Whether the first rows have a field that is called as labels are, of few values, beside a text."""
    try:
        records = _first(source)
    except InputError:
        return False
    return bool(records) and _label_of(records) is not None


def inspect_labelled_text(source: str) -> Inspection:
    """Texts, classes and groups, and their contract. Raises: InputError where they cannot be read."""
    findings = Findings(source)
    raw: dict[str, Any] = {"kind": "labelled-text"}
    if source not in BUILT_IN:
        raw |= _written(source, findings) | _fields(source, findings)
    contract = LabelledTextContract.model_validate(raw)
    seen = _look(source, contract, findings)
    raw["labels"] = list(BUILT_IN[source]().names) if source in BUILT_IN else in_order(seen.classes)
    if len(raw["labels"]) > MOST_CLASSES:
        findings.note(f"{len(raw['labels']):,} different labels: perhaps {contract.label!r} is not the class")
    if len(raw["labels"]) < 2:
        findings.note(f"fewer than two classes in {contract.label!r}: name another field")
        raw.pop("labels")
    if seen.missing:
        findings.note(
            f"{counted(seen.missing, 'row')} without a text, label or group are dropped by this draft"
        )
        raw["missing"] = "drop"
    return Inspection(findings, contract_text(raw, findings), seen.example)


@dataclass
class _Seen:
    classes: Counter[str] = field(default_factory=Counter)
    groups: Counter[str] = field(default_factory=Counter)
    digests: set[bytes] = field(default_factory=set)
    texts: int = 0
    missing: int = 0
    copies: int = 0
    words: list[int] = field(default_factory=list)
    example: dict[str, str] = field(default_factory=dict)


def _look(source: str, contract: LabelledTextContract, findings: Findings) -> _Seen:
    seen = _Seen()
    rows = rows_of("source", source, contract, findings)
    for row in islice(rows, MOST):
        _see(row, contract, seen)
    if next(rows, None) is not None:
        findings.note(f"only the first {MOST:,} rows are looked at")
    findings.fact("texts", f"{seen.texts:,}")
    if seen.words:
        lengths = sorted(seen.words)
        middle, most = lengths[len(lengths) // 2], lengths[-1]
        findings.fact("a text", f"{lengths[0]:,} to {most:,} words, half of them at most {middle:,}")
    named = (f"{name[:40]} {count:,}" for name, count in seen.classes.most_common())
    findings.fact("classes", some(named))
    if contract.group is not None and seen.groups:
        most = max(seen.groups.values())
        findings.fact(
            "groups", f"{len(seen.groups):,} by {contract.group!r}, of up to {counted(most, 'text')}"
        )
    if seen.copies:
        findings.note(
            f"{counted(seen.copies, 'text')} copied from others; each copy counts as another example"
        )
    return seen


def _see(row: Row, contract: LabelledTextContract, seen: _Seen) -> None:
    label = _as_text(row.label)
    group = ""
    if contract.group is not None:
        try:
            group = folded(name_of(row.group) or "")
        except TypeError as error:
            rule = f"{row.place}: field {contract.group!r} names no group: it holds a {error}"
            raise InputError("source", contract.group, rule) from None
    if not isinstance(row.text, str) or not row.text.strip() or not label or (contract.group and not group):
        seen.missing += 1
        return
    digest = hashlib.blake2b(row.text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    seen.copies += digest in seen.digests
    seen.digests.add(digest)
    seen.texts += 1
    seen.words.append(len(row.text.split()))
    seen.classes[label] += 1
    if group:
        seen.groups[group] += 1
    if not seen.example:
        seen.example = {on_one_line(row.text[:60]): label}


def _written(source: str, findings: Findings) -> dict[str, Any]:
    """How a table is written down, where it does not say so itself."""
    if is_database(source) or inner_suffix(Path(source)) not in CSV or not is_table(Path(source)):
        return {}
    written = how_it_is_written(source, None, findings).model_dump(exclude_defaults=True)
    written.pop("decimal", None)  # numbers are not read
    return written


def _fields(source: str, findings: Findings) -> dict[str, str]:
    """The fields of text, label and group: by their names, else the longest texts and the fewest values."""
    records = _first(source)
    paths = _paths(records)
    texts = {
        path: sum(map(len, values)) for path, values in paths.items() if all(type(v) is str for v in values)
    }
    found: dict[str, str] = {}
    label = _label_of(records)
    if label is not None:
        found["label"] = label
        texts.pop(label, None)
    likely = [path for path in texts if path.split(".")[-1].lower() in _TEXT_NAMES]
    if texts:
        found["text"] = max(likely or texts, key=lambda path: texts[path])
    named = {f"{name}{suffix}" for name in _GROUP_NAMES for suffix in _SUFFIXES}
    group = next((p for p in paths if p.split(".")[-1].lower() in named and p not in found.values()), None)
    if group is not None:
        found["group"] = group
        findings.note(
            f"field {group!r} is taken for whose a text is; training.group = {group!r} makes it the unit"
        )
    for what, path in found.items():
        if what != path and what != "group":
            findings.note(f"field {path!r} is taken for the {what}; there are {some(paths)}")
    return {what: path for what, path in found.items() if what == "group" or what != path}


def _label_of(records: list[dict[str, Any]]) -> str | None:
    for path, values in _paths(records).items():
        if path.split(".")[-1].lower() not in LABELS:
            continue
        written = {_as_text(value) for value in values if not isinstance(value, dict | list)}
        if 0 < len(written) <= max(2, min(MOST_CLASSES, len(records) // 2)):
            return path
    return None


def _paths(records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The values of every field, by its path."""
    found: dict[str, list[Any]] = {}
    for record in records:
        inner = {path for path, _ in _texts(record, "")}
        for path in inner:
            value: Any = record
            for part in path.split(".") if path not in record else [path]:
                value = value[part]
            found.setdefault(path, []).append(value)
        for name, value in record.items():
            if name not in inner and value is not None and not isinstance(value, dict):
                found.setdefault(name, []).append(value)
    return found


def _first(source: str) -> list[dict[str, Any]]:
    """The first rows of a source, where they can be read."""
    if is_database(source) or (is_table(Path(source)) and inner_suffix(Path(source)) != ".parquet"):
        csv = not is_database(source) and inner_suffix(Path(source)) in CSV
        written = how_it_is_written(source, None, Findings(source)) if csv else FileContract()
        frame = read_frame("source", source, written).head(_SAMPLE)
        return [{str(k): v for k, v in record.items()} for record in frame.to_dict("records")]
    for file in files_of("source", source, list(BUILT_IN), Findings(source)):
        if file.suffix == ".parquet" or file.suffix in LINES:
            return _records(file, _SAMPLE)
    return []
