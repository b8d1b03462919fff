"""Text from a built-in source or the company's own disk, cut into windows of tokens.

Read from disk: a text file; text8 or its .zip; .jsonl and .parquet with a `text` field (OpenWebText dumps); a
folder of any of these, and of the news.en-* shards of the 1-billion-word benchmark, one sentence a line.
"""

from __future__ import annotations

import ast
import io
import json
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...blocks.settings import TextSettings
from ...errors import InputError
from ...settings import DataSource
from .tokenizer import Tokenizer

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
_PIECE = 1 << 24  # characters read at once


def load_text(field: str, source: DataSource, model: TextSettings) -> Tensor:
    """(N, sequence_length) int64: the text in order, in windows that do not overlap; the rest is dropped."""
    tokenizer = Tokenizer.of("model.tokenizer", model.tokenizer)
    if tokenizer.vocabulary > model.vocabulary:
        rule = f"{model.tokenizer} has {tokenizer.vocabulary} tokens"
        raise InputError("model.vocabulary", model.vocabulary, rule)
    tokens = np.concatenate(
        [np.empty(0, dtype=np.int64), *map(tokenizer.encode, _pieces(field, source.source))]
    )
    windows, length = len(tokens) // model.sequence_length, model.sequence_length
    if not windows:
        raise InputError(field, source.source, f"{len(tokens)} tokens do not fill a window of {length}")
    return torch.from_numpy(tokens[: windows * length]).view(windows, length)


def _pieces(field: str, source: str) -> Iterator[str]:
    """The text in pieces of bounded size; documents end with a newline."""
    if source in BUILT_IN:
        yield BUILT_IN[source]()
        return
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and _is_text(p))
        if not files:
            raise InputError(field, source, f"no {', '.join(SUFFIXES)} or news.en-* files here")
    elif path.is_file():
        files = [path]
    else:
        known = ", ".join(BUILT_IN)
        raise InputError(field, source, f"no such file or folder; built-in texts: {known}")
    for file in files:
        try:
            yield from _read(field, file)
        except UnicodeDecodeError as error:
            raise InputError(field, str(file), f"not UTF-8 (byte {error.start})") from None
        except OSError as error:
            raise InputError(field, str(file), f"not readable ({type(error).__name__})") from None


def _is_text(file: Path) -> bool:
    return file.suffix in SUFFIXES or file.name.startswith("news.en")


def _read(field: str, file: Path) -> Iterator[str]:
    if file.suffix == ".parquet":
        yield from _read_parquet(field, file)
    elif file.suffix == ".jsonl":
        yield from _read_jsonl(field, file)
    elif file.suffix == ".zip":
        yield from _read_zip(field, file)
    else:
        with file.open(encoding="utf-8") as opened:
            yield from _whole(opened)


def _whole(opened: io.TextIOWrapper) -> Iterator[str]:
    piece = ""
    while read := opened.read(_PIECE):
        piece = read
        yield piece
    if piece and not piece.endswith("\n"):
        yield "\n"


def _read_zip(field: str, file: Path) -> Iterator[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            for name in sorted(archive.namelist()):
                with archive.open(name) as raw:
                    yield from _whole(io.TextIOWrapper(raw, encoding="utf-8"))
    except zipfile.BadZipFile:
        raise InputError(field, str(file), "not a readable .zip file") from None


def _read_jsonl(field: str, file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as opened:
        for number, line in enumerate(opened, start=1):
            try:
                text = json.loads(line)["text"].encode("utf-8").decode("utf-8")
            except (ValueError, KeyError, TypeError, AttributeError):
                rule = f'line {number}: expected {{"text": "..."}}'
                raise InputError(field, str(file), rule) from None
            yield f"{text}\n"


def _read_parquet(field: str, file: Path) -> Iterator[str]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as table:
            if "text" not in table.schema_arrow.names:
                raise InputError(field, str(file), "column 'text' is missing")
            for batch in table.iter_batches(columns=["text"]):
                rows = batch.column(0).to_pylist()
                if not all(isinstance(row, str) for row in rows):
                    raise InputError(field, str(file), "expected text in every row of column 'text'")
                yield "".join(f"{row}\n" for row in rows)
    except ArrowException as error:
        raise InputError(field, str(file), f"not a readable .parquet file ({type(error).__name__})") from None


def _topics() -> str:
    """The language reference that every Python ships for its `help()`: nearly half a million characters."""
    from pydoc_data import topics

    return "\n".join(topics.topics[key] for key in sorted(topics.topics))


@cache
def _docstrings() -> str:
    """The docstrings of this Python's standard library, by module name: 1.7 million characters."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(n for n in sys.stdlib_module_names if n not in ("test", "idlelib", "pydoc_data"))
    found: list[str] = []
    for name in names:
        for file in (root / f"{name}.py", *sorted((root / name).rglob("*.py"))):
            if file.is_file() and "test" not in file.relative_to(root).parts:
                found += _docstrings_of(file)
    return "\n".join(found)


def _docstrings_of(file: Path) -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # templates and code of other versions lie there too
        return
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, documented) else None
        if text:
            yield f"{text}\n"


BUILT_IN: dict[str, Callable[[], str]] = {"python-topics": _topics, "python-docstrings": _docstrings}
