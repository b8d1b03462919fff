"""Text from a built-in source or the company's own disk, cut into windows of tokens.

Documents stay apart: a window holds tokens of one of them, unless the contract says `across_documents`. So what
example-level privacy protects, a window, is of one document, and no document is another one's context.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ....blocks.examples import Examples
from ....blocks.settings import TextSettings
from ....errors import InputError
from ....settings import DataSource
from ....settings.contract import TextContract
from ..findings import Findings, counted
from ..group_keys import GroupKeys
from .documents import Document, grouped_documents
from .own_tokenizer import OwnTokenizer, folder_of
from .tokenizer import CHARACTERS, Tokenizer, Tokens

_DIGEST_BYTES = 16


@dataclass
class _Seen:
    """What has been read: `short` documents fill no window, `rest` tokens at a document's end do not; `cut` documents
    are longer than their one window, by `cut_tokens` together; `filled` ones are shorter, and filled up."""

    documents: int = 0
    characters: int = 0
    tokens: int = 0
    short: int = 0
    rest: int = 0
    cut: int = 0
    cut_tokens: int = 0
    filled: int = 0
    copies: int = 0
    digests: set[bytes] = field(default_factory=set)


@dataclass(frozen=True)
class _Encoder:
    """`encode(piece, first)`: the tokens of a document's piece; `pad` fills up short documents, none where nothing
    does; `name` of the tokenizer."""

    encode: Callable[[str, bool], Tokens]
    pad: int | None
    name: str


def load_text(
    field: str,
    source: DataSource,
    model: TextSettings,
    contract: TextContract | None = None,
    findings: Findings | None = None,
) -> Tensor:
    """(N, sequence_length) int64: the inputs of `load_documents`."""
    found = findings or Findings(source.source)
    return load_documents(field, source, model, contract, found).inputs


def load_documents(
    field: str, source: DataSource, model: TextSettings, contract: TextContract | None, findings: Findings
) -> Examples:
    """inputs and targets (N, sequence_length) int64: the text in order, in windows that do not overlap, or of each
    document the first; groups where the contract names them.

    The last tokens of a document that fill no window are dropped, as is a document shorter than one, unless it is
    cut and the model has a token that fills it up.
    """
    encoder, length = _encoder(model), model.sequence_length
    told, seen = contract or TextContract(), _Seen()
    keys = None if told.group is None else GroupKeys(told.group)
    every = _tokens(field, source.source, told, encoder, seen, keys, findings)
    if told.across_documents:
        every = iter(
            ((np.concatenate([np.empty(0, dtype=np.int64), *(tokens for tokens, _ in every)]), None),)
        )
    kept = []
    for tokens, group in every:
        windows = (
            _cut(tokens, length, encoder.pad, seen)
            if told.packing == "cut"
            else _windows(tokens, length, seen)
        )
        kept.append(windows)
        if keys is not None and group is not None:
            keys.add(group, len(windows) // length)
    found = np.concatenate([np.empty(0, dtype=np.int64), *kept]).reshape(-1, length)
    _say(findings, seen, found, model, encoder.name)
    groups = None if keys is None else keys.groups(findings)
    if len(found) == 0:
        raise InputError(field, source.source, _too_short(seen, length, told))
    units = len(found) if groups is None else len(groups)
    if contract is not None and units < contract.least_examples:
        what = f"{counted(units, 'window')} of {length} tokens" if groups is None else counted(units, "group")
        raise InputError(field, source.source, f"{what}, contract.least_examples={contract.least_examples}")
    tensor = torch.from_numpy(found)
    return Examples(tensor, tensor, groups)


def _encoder(model: TextSettings) -> _Encoder:
    """The tokenizer that the settings name, or a pretrained model's own."""
    pretrained: str | None = getattr(model, "pretrained", None)
    if pretrained is not None:
        own, pad = OwnTokenizer.of("model.pretrained", folder_of(pretrained)), getattr(model, "pad", None)
        own.check("model", vocabulary=model.vocabulary, length=model.sequence_length, pad=pad)

        def encode(piece: str, first: bool) -> Tokens:
            return np.array(own.whole([piece], special=first)[0], dtype=np.int64)

        return _Encoder(encode, pad, "model's own")
    tokenizer = Tokenizer.of("model.tokenizer", model.tokenizer)
    if tokenizer.vocabulary > model.vocabulary:
        rule = f"{model.tokenizer} has {tokenizer.vocabulary} tokens"
        raise InputError("model.vocabulary", model.vocabulary, rule)
    return _Encoder(lambda piece, first: tokenizer.encode(piece), None, model.tokenizer)


def _windows(tokens: Tokens, length: int, seen: _Seen) -> Tokens:
    whole = len(tokens) // length * length
    seen.short += whole == 0
    seen.rest += len(tokens) - whole if whole else 0
    return tokens[:whole]


def _cut(tokens: Tokens, length: int, pad: int | None, seen: _Seen) -> Tokens:
    """A document's first window; of one that fills none nothing, unless `pad` fills it up."""
    if len(tokens) < length and pad is not None and len(tokens):
        seen.filled += 1
        return np.concatenate([tokens, np.full(length - len(tokens), pad, dtype=np.int64)])
    seen.short += len(tokens) < length
    seen.cut += len(tokens) > length
    seen.cut_tokens += max(0, len(tokens) - length)
    return tokens[: length if len(tokens) >= length else 0]


def _tokens(
    field: str,
    source: str,
    contract: TextContract,
    encoder: _Encoder,
    seen: _Seen,
    keys: GroupKeys | None,
    findings: Findings,
) -> Iterator[tuple[Tokens, bytes | None]]:
    """Those of one document after another, and the group that it is of."""
    left_out = 0
    for document in grouped_documents(field, source, contract, findings):
        group = None if keys is None else _group(field, source, document, keys, contract)
        if keys is not None and group is None:
            left_out += 1
            for _ in document.pieces:  # to be read before the next one is asked for
                pass
            continue
        digest, parts = hashlib.blake2b(digest_size=_DIGEST_BYTES), [np.empty(0, dtype=np.int64)]
        for piece in document.pieces:
            digest.update(piece.encode("utf-8", "surrogatepass"))
            seen.characters += len(piece)
            text = piece.removesuffix("\n") if contract.packing == "cut" else piece
            parts.append(encoder.encode(text, len(parts) == 1))
        seen.documents += 1
        seen.copies += digest.digest() in seen.digests
        seen.digests.add(digest.digest())
        tokens = parts[1] if len(parts) == 2 else np.concatenate(parts)
        seen.tokens += len(tokens)
        yield tokens, group
    if left_out:
        findings.note(f"{counted(left_out, 'document')} without a group left out")


def _group(
    field: str, source: str, document: Document, keys: GroupKeys, contract: TextContract
) -> bytes | None:
    """None where the document names no group and the contract drops it."""
    try:
        found = keys.digest(document.group)
    except TypeError as error:
        rule = f"{document.place}: field {keys.column!r} names no group: it holds a {error}"
        raise InputError(field, source, rule) from None
    if found is None and contract.missing == "refuse":
        rule = f'no group in {keys.column!r}; name the field, or say missing = "drop", in a contract'
        raise InputError(field, source, f"{document.place}: {rule}")
    return found


def _say(findings: Findings, seen: _Seen, found: Tokens, model: TextSettings, tokenizer: str) -> None:
    findings.fact("documents", f"{seen.documents:,}, of {seen.characters:,} characters")
    findings.fact("tokens", f"{seen.tokens:,} of the {tokenizer} tokenizer")
    findings.fact("examples", f"{len(found):,} windows of {model.sequence_length} tokens")
    if seen.copies:
        findings.note(
            f"{counted(seen.copies, 'document')} copied from others; each copy counts as other examples"
        )
    if seen.short and len(found):
        findings.note(
            f"{counted(seen.short, 'document')} shorter than a window of {model.sequence_length} left out"
        )
    if seen.rest:
        findings.note(
            f"{counted(seen.rest, 'token')} at the ends of documents fill no window and are left out"
        )
    if seen.cut:
        findings.note(
            f"{counted(seen.cut, 'document')} of {seen.documents:,} cut at {model.sequence_length} tokens: "
            f"{seen.cut_tokens:,} of {seen.tokens:,} tokens left out"
        )
    if seen.filled:
        findings.note(f"{counted(seen.filled, 'document')} shorter than a window filled up")
    unknown = int((found == len(CHARACTERS["ascii"])).sum()) if tokenizer == "ascii" else 0
    if unknown:
        findings.note(
            f"{counted(unknown, 'character')} that ASCII does not have read as one and the same token"
        )


def _too_short(seen: _Seen, length: int, contract: TextContract) -> str:
    if seen.documents <= 1 or contract.across_documents:
        return f"{seen.tokens} tokens do not fill a window of {length}; shorten model.sequence_length"
    rule = (
        f"none of {seen.documents:,} documents, of together {seen.tokens} tokens, fills a window of {length}"
    )
    return f"{rule}; shorten model.sequence_length, or say across_documents = true in a contract"
