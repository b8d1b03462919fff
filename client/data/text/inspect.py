"""Looking at a text before it is used: its documents, how they are written, and a contract to start from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ....errors import InputError
from ....settings.contract import TextContract
from ..draft import Inspection, contract_text
from ..findings import Findings, counted
from ..tables.inspect import encoding_of
from .built_in import BUILT_IN
from .documents import by_path, documents
from .files import LINES, File, files_of
from .tokenizer import Tokenizer

MOST = 1 << 26  # characters that are looked at
_LONG_LINE = 1 << 16
_WINDOW = 64  # of the presets
_NAMES = ("text", "content", "body", "document", "article", "message")


def inspect_text(source: str) -> Inspection:
    """Documents and their contract; of a long text its beginning. Raises: InputError where it cannot be read."""
    findings = Findings(source)
    raw: dict[str, Any] = {"kind": "text"}
    if source not in BUILT_IN:
        files = files_of("source", source, list(BUILT_IN), Findings(source))
        raw |= _encoding(files, findings) | _field(files, findings)
    contract = TextContract.model_validate(raw)
    try:
        example = _look(source, contract, findings)
    except InputError as error:
        if "no text in field" not in str(error):
            raise
        findings.note("some documents have no text; they are dropped by this draft")
        raw["missing"] = "drop"
        example = _look(source, TextContract.model_validate(raw), findings)
    return Inspection(findings, contract_text(raw, findings), example)


def _look(source: str, contract: TextContract, findings: Findings) -> dict[str, str]:
    """Facts of the documents; the first window of the first that fills one, and its tokens."""
    lengths: list[int] = []
    digests: set[bytes] = set()
    whole = copies = strange = longest = 0
    example: dict[str, str] = {}
    tokenizer = Tokenizer.of("tokenizer", "ascii")
    for document in documents("source", source, contract, findings):
        digest, length = hashlib.blake2b(digest_size=16), 0
        for piece in document:
            digest.update(piece.encode("utf-8", "surrogatepass"))
            if length == 0 and not example and len(piece) >= _WINDOW:
                shown = ", ".join(map(str, tokenizer.encode(piece[:8]).tolist()))
                example = {
                    f"{piece[:8]!r} and {_WINDOW - 8} more characters": f"{shown}, ... ({_WINDOW} tokens)"
                }
            length += len(piece)
            strange += 0 if piece.isascii() else sum(ord(character) > 127 for character in piece)
            longest = max(longest, max(map(len, piece.split("\n"))))
            if whole + length >= MOST:
                break
        lengths.append(length)
        whole += length
        copies += digest.digest() in digests
        digests.add(digest.digest())
        if whole >= MOST:
            findings.note(f"only the first {MOST:,} characters are looked at")
            break
    findings.fact("documents", f"{len(lengths):,}")
    findings.fact("characters", f"{whole:,}")
    if whole == 0:
        findings.note("there is no text")
    if lengths:
        findings.fact("a document", f"{min(lengths):,} to {max(lengths):,} characters")
    short = sum(length < _WINDOW for length in lengths)
    _note_odd(findings, short, copies, strange, longest, whole)
    return example


def _note_odd(findings: Findings, short: int, copies: int, strange: int, longest: int, whole: int) -> None:
    if copies:
        findings.note(f"{counted(copies, 'document')} copied from others; each copy counts as other examples")
    if short:
        rule = "left out unless across_documents = true"
        findings.note(f"{counted(short, 'document')} shorter than a window of {_WINDOW} characters, {rule}")
    if strange > 0.01 * whole:
        share = f"{100 * strange / whole:.0f} % of the characters are not ASCII"
        findings.note(f"{share}: the tokenizer 'ascii' reads them as one, 'bytes' keeps them")
    if longest > _LONG_LINE:
        findings.note(f"the longest line has {longest:,} characters")


def _encoding(files: list[File], findings: Findings) -> dict[str, str]:
    """Of the first file that is not in UTF-8, if one is not."""
    for file in files:
        if file.within or file.suffix == ".parquet":
            continue
        try:
            with file.open() as opened:
                if opened.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                    continue  # UTF-16, which its mark tells
            found = encoding_of(Path(file.shown))
        except Exception:  # the reader says what is wrong, by its place
            return {}
        if found is not None:
            findings.note(f"{file.name} is written in {found}, as it seems, not in UTF-8")
            return {"encoding": found}
    return {}


def _field(files: list[File], findings: Findings) -> dict[str, str]:
    """The field of text in lines of JSON or a table: by its name, else the one with the longest texts."""
    for file in files:
        if file.suffix != ".parquet" and file.suffix not in LINES:
            continue
        records = _records(file)
        texts: dict[str, int] = {}
        for record in records:
            for path, length in _texts(record, ""):
                texts[path] = texts.get(path, 0) + length
        if records and texts and not any(by_path(record, "text") is not None for record in records):
            likely = [path for path in texts if path.split(".")[-1].lower() in _NAMES]
            chosen = max(likely or texts, key=lambda path: texts[path])
            findings.note(f"field {chosen!r} is taken for the text; there are {', '.join(list(texts)[:12])}")
            return {"field": chosen}
    return {}


def _records(file: File, most: int = 100) -> list[dict[str, Any]]:
    """The first lines or rows, where they can be read."""
    try:
        with file.open() as raw:
            if file.suffix == ".parquet":
                from pyarrow.parquet import ParquetFile

                batch = next(ParquetFile(raw).iter_batches(batch_size=most), None)
                return [] if batch is None else list(batch.to_pylist())
            lines = [raw.readline() for _ in range(most)]
        found = [json.loads(line.decode("utf-8-sig")) for line in lines if line.strip()]
    except Exception:  # the reader says what is wrong, by its place
        return []
    return [record for record in found if isinstance(record, dict)]


def _texts(record: dict[str, Any], above: str) -> list[tuple[str, int]]:
    found = []
    for name, value in record.items():
        if isinstance(value, str):
            found.append((f"{above}{name}", len(value)))
        elif isinstance(value, dict):
            found += _texts(value, f"{above}{name}.")
    return found
