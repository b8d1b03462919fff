"""Documents of a source of text, each in pieces of bounded size, so that a text of any length fits.

A file of text is one document, as are a line of JSON and a row of a table. Shards of sentences (news.en-* of the
1-billion-word benchmark) go on from file to file and are one document together.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from ....errors import InputError
from ....settings.contract import FileContract, TextContract
from ..findings import Findings, counted, some
from ..tables.database import is_database
from ..tables.frames import read_frame
from .built_in import BUILT_IN
from .files import LINES, Bomb, File, files_of

_PIECE = 1 << 24  # characters read at once
_MARK = "\ufeff"  # also where files with a mark each were joined
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip

Pieces = Iterator[str]


class Document(NamedTuple):
    """`group`: what the contract's group column says of it, `place`: where, in an error."""

    pieces: Pieces
    group: object = None
    place: str = ""


def documents(field: str, source: str, contract: TextContract, findings: Findings) -> Iterator[Pieces]:
    """Each to be read before the next one is asked for; it ends with a newline.

    Raises: InputError naming the file, and the line or the byte, of what cannot be read.
    """
    return (document.pieces for document in grouped_documents(field, source, contract, findings))


def grouped_documents(
    field: str, source: str, contract: TextContract, findings: Findings
) -> Iterator[Document]:
    """As `documents`, with whose each is."""
    if source in BUILT_IN:
        if contract.group is not None:
            raise InputError("contract.group", contract.group, f"{source} does not say whose its texts are")
        yield Document(iter((BUILT_IN[source](),)))
        return
    if is_database(source):
        yield from _of_database(field, source, contract, findings)
        return
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=contract.encoding)
    except LookupError:
        raise InputError("contract.encoding", contract.encoding, "no such encoding of text") from None
    files = files_of(field, source, list(BUILT_IN), findings)
    findings.fact("files", f"{len(files):,}")
    readers = [Reader(field, file, contract, findings) for file in files]
    at = 0
    while at < len(files):
        shards = at
        while shards < len(files) and files[shards].is_shard:
            shards += 1
        if shards > at:
            readers[at].refuse_group()
            yield Document(piece for reader in readers[at:shards] for piece in reader.plain())
            at = shards
        else:
            yield from readers[at].documents()
            at += 1
    empty = sum(reader.empty for reader in readers)
    if empty:
        findings.note(f"{counted(empty, 'document')} without text left out")


def _of_database(field: str, source: str, contract: TextContract, findings: Findings) -> Iterator[Document]:
    """A row a document; `contract.field` is the column."""
    rows = read_frame(field, source, FileContract(table=contract.table, query=contract.query))
    for name in (contract.field, contract.group):
        if name is not None and name not in rows.columns:
            rule = f"column {name!r} is missing; name the field in a contract: {some(rows.columns)}"
            raise InputError(field, source, rule)
    findings.fact("rows", f"{len(rows):,}")
    empty = 0
    groups = [None] * len(rows) if contract.group is None else rows[contract.group].tolist()
    for number, (text, group) in enumerate(zip(rows[contract.field], groups, strict=True), start=1):
        if isinstance(text, str) and "\0" not in text:
            yield Document(iter((f"{text}\n",)), group, f"row {number}")
        elif text is None or text != text:
            if contract.missing == "refuse":
                rule = 'no text; fill it, or say missing = "drop" in a contract'
                raise InputError(field, f"row {number} of column {contract.field!r}", rule)
            empty += 1
        else:
            raise InputError(field, f"row {number} of column {contract.field!r}", "is no text")
    if empty:
        findings.note(f"{counted(empty, 'document')} without text left out")


class Reader:
    """One file. `empty`: how many of its lines or rows have no text."""

    def __init__(self, field: str, file: File, contract: TextContract, findings: Findings) -> None:
        self.field, self.file, self.contract, self.findings = field, file, contract, findings
        self.empty = 0

    def documents(self) -> Iterator[Document]:
        if self.file.suffix not in (".parquet", *LINES):
            self.refuse_group()
            yield Document(self.plain())
            return
        group = self.contract.group
        for place, record in self.records(self.contract.field, *([] if group is None else [group])):
            text = self.text(place, record)
            if text is not None:
                told = None if group is None else by_path(record, group)
                yield Document(iter((f"{text}\n",)), told, f"{self.file.within}{place}")

    def refuse_group(self) -> None:
        """Of plain text, which has no fields."""
        if self.contract.group is not None:
            rule = f"is plain text, which has no field {self.contract.group!r} to say whose it is"
            raise self.wrong(f"{rule}; give JSON lines or a table, or a contract without group")

    def records(self, *paths: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Lines of JSON, or rows of a table with the fields of these paths, each with its place."""
        return self._rows(*paths) if self.file.suffix == ".parquet" else self._json_lines()

    def wrong(self, rule: str) -> InputError:
        return InputError(self.field, self.file.shown, f"{self.file.within}{rule}")

    def plain(self) -> Pieces:
        """The text as it stands. A NUL is refused: it tells of UTF-16, or of no text."""
        piece, before = "", 0
        with _Opened(self) as (raw, encoding):
            text = io.TextIOWrapper(raw, encoding=encoding)  # line ends of every system become \n
            while read := text.read(_PIECE):
                piece = read
                if "\0" in piece:
                    place = f"character {before + piece.index(chr(0)):,}"
                    raise self.wrong(
                        f"holds a NUL ({place}): no text, or an encoding to be named in a contract"
                    )
                before += len(piece)
                yield piece
        if piece and not piece.endswith("\n"):
            yield "\n"

    def _json_lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        with _Opened(self) as (raw, encoding):
            for number, line in enumerate(io.TextIOWrapper(raw, encoding=encoding), start=1):
                if line.strip():
                    yield f"line {number}", self._object(number, line.lstrip(_MARK))

    def _object(self, number: int, line: str) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except RecursionError:
            raise self.wrong(f"line {number} is nested too deeply") from None
        except ValueError as error:
            at = f" (character {error.pos + 1})" if isinstance(error, json.JSONDecodeError) else ""
            cut = "" if line.endswith("\n") else ", and the file ends in it: perhaps it was cut short"
            cut = ", not an array" if line.startswith("[") else cut
            raise self.wrong(f"line {number} is not JSON{at}; expected one object a line{cut}") from None
        if not isinstance(found, dict):
            raise self.wrong(f"line {number} is no JSON object; expected one a line")
        return found

    def _rows(self, *paths: str) -> Iterator[tuple[str, dict[str, Any]]]:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        row = 0
        try:
            with self.file.open() as raw, ParquetFile(raw) as table:
                names = table.schema_arrow.names
                columns = [path if path in names else path.split(".")[0] for path in paths]
                for column in columns:
                    if column not in names:
                        rule = "is missing; name the field in a contract"
                        raise self.wrong(f"column {column!r} {rule}: {', '.join(names[:12])}")
                for batch in table.iter_batches(columns=list(dict.fromkeys(columns))):
                    for record in batch.to_pylist():
                        row += 1
                        yield f"row {row}", record
        except (ArrowException, OSError, ValueError) as error:
            rule = f"not a readable .parquet file ({type(error).__name__})"
            raise self.wrong(rule) from None

    def text(self, place: str, record: dict[str, Any]) -> str | None:
        """The text of a line or row; none where there is none and the contract drops it."""
        field = self.contract.field
        found = by_path(record, field)
        if found is None:
            if self.contract.missing == "drop":
                self.empty += 1
                return None
            rule = f'no text in field {field!r}; name the field, or say missing = "drop", in a contract'
            raise self.wrong(f"{place}: {rule}")
        if not isinstance(found, str):
            raise self.wrong(f"{place}: field {field!r} is no text")
        if "\0" in found:
            raise self.wrong(f"{place}: field {field!r} holds a NUL")
        try:
            found.encode("utf-8")
        except UnicodeEncodeError:
            raise self.wrong(f"{place}: field {field!r} holds half a character (a lone surrogate)") from None
        return found


class _Opened:
    """A file's bytes and its encoding, by its byte order mark if it has one; errors of reading become ours."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self._file = reader, reader.file
        self._encoding = reader.contract.encoding or "utf-8"
        self._raw: IO[bytes] | None = None

    def __enter__(self) -> tuple[IO[bytes], str]:
        try:
            with self._file.open() as raw:
                head = raw.read(4)
            marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
            self._encoding = marked or self._encoding
            self._raw = self._file.open()
        except Exception as error:
            raise self._ours(error) from None
        if marked not in (None, "utf-8-sig"):
            note = f"{self._file.name} is read as {self._encoding.upper()}, as its byte order mark says"
            self._reader.findings.note(note)
        return self._raw, self._encoding

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._raw is not None:
            self._raw.close()
        if isinstance(error, Exception) and not isinstance(error, InputError | MemoryError):
            raise self._ours(error) from None

    def _ours(self, error: Exception) -> InputError:
        wrong = self._reader.wrong
        if isinstance(error, UnicodeError):
            name = "UTF-8" if self._encoding in ("utf-8", "utf-8-sig") else self._encoding
            return wrong(f"not {name} {self._where()}; name the encoding in a contract")
        if isinstance(error, Bomb):
            return wrong(str(error))
        if isinstance(error, OSError) and error.strerror:
            return wrong(f"not readable ({error.strerror})")
        if isinstance(error, NotImplementedError):
            return wrong("is packed in a way that is not read; pack it anew")
        return wrong(f"is damaged ({type(error).__module__}.{type(error).__name__}); get it anew")

    def _where(self) -> str:
        """Byte and line of what is not of the encoding, counted in a second reading."""
        name = self._encoding.replace("utf-8-sig", "utf-8")  # whose decoder does not count the mark
        decoder = codecs.getincrementaldecoder(name)()
        before, lines = 0, 1
        with self._file.open() as raw:
            while True:
                chunk = raw.read(1 << 20)
                kept = len(decoder.getstate()[0])
                try:
                    lines += decoder.decode(chunk, final=not chunk).count("\n")
                except UnicodeDecodeError as error:
                    lines += error.object[: error.start].decode(name, "ignore").count("\n")
                    return f"(byte {before - kept + error.start}) in line {lines}"
                except UnicodeError:
                    return "(byte 0)"
                if not chunk:
                    return "at its end"
                before += len(chunk)


def by_path(record: dict[str, Any], path: str) -> object:
    """`{"body": {"text": ...}}` by "body.text"; none where there is nothing. A name may itself hold a point."""
    if path in record:
        return record[path]
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        inner = record.get(".".join(parts[:count]))
        if isinstance(inner, dict):
            return by_path(inner, ".".join(parts[count:]))
    return None
