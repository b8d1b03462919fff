"""Text from a built-in source or the company's own disk, cut into windows of tokens.

Documents stay apart: a window holds tokens of one of them, unless the contract says `across_documents`. So what
example-level privacy protects, a window, is of one document, and no document is another one's context.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ....blocks.settings import TextSettings
from ....errors import InputError
from ....settings import DataSource
from ....settings.contract import TextContract
from ..findings import Findings, counted
from .documents import documents
from .tokenizer import CHARACTERS, Tokenizer, Tokens

_DIGEST_BYTES = 16


@dataclass
class _Seen:
    """What has been read: `short` documents fill no window, `rest` tokens at a document's end do not."""

    documents: int = 0
    characters: int = 0
    tokens: int = 0
    short: int = 0
    rest: int = 0
    copies: int = 0
    digests: set[bytes] = field(default_factory=set)


def load_text(
    field: str,
    source: DataSource,
    model: TextSettings,
    contract: TextContract | None = None,
    findings: Findings | None = None,
) -> Tensor:
    """(N, sequence_length) int64: the text in order, in windows that do not overlap.

    The last tokens of a document that fill no window are dropped, as is a document shorter than one.
    """
    findings = findings or Findings(source.source)
    tokenizer = Tokenizer.of("model.tokenizer", model.tokenizer)
    if tokenizer.vocabulary > model.vocabulary:
        rule = f"{model.tokenizer} has {tokenizer.vocabulary} tokens"
        raise InputError("model.vocabulary", model.vocabulary, rule)
    told, seen, length = contract or TextContract(), _Seen(), model.sequence_length
    every = _tokens(field, source.source, told, tokenizer, seen, findings)
    if told.across_documents:
        every = iter((np.concatenate([np.empty(0, dtype=np.int64), *every]),))
    kept = []
    for tokens in every:
        whole = len(tokens) // length * length
        seen.short += whole == 0
        seen.rest += len(tokens) - whole if whole else 0
        kept.append(tokens[:whole])
    found = np.concatenate([np.empty(0, dtype=np.int64), *kept]).reshape(-1, length)
    _say(findings, seen, found, model)
    if len(found) == 0:
        raise InputError(field, source.source, _too_short(seen, length, told))
    if contract is not None and len(found) < contract.least_examples:
        rule = f"{counted(len(found), 'window')} of {length} tokens"
        raise InputError(field, source.source, f"{rule}, contract.least_examples={contract.least_examples}")
    return torch.from_numpy(found)


def _tokens(
    field: str, source: str, contract: TextContract, tokenizer: Tokenizer, seen: _Seen, findings: Findings
) -> Iterator[Tokens]:
    """Those of one document after another."""
    for document in documents(field, source, contract, findings):
        digest, parts = hashlib.blake2b(digest_size=_DIGEST_BYTES), [np.empty(0, dtype=np.int64)]
        for piece in document:
            digest.update(piece.encode("utf-8", "surrogatepass"))
            seen.characters += len(piece)
            parts.append(tokenizer.encode(piece))
        seen.documents += 1
        seen.copies += digest.digest() in seen.digests
        seen.digests.add(digest.digest())
        tokens = parts[1] if len(parts) == 2 else np.concatenate(parts)
        seen.tokens += len(tokens)
        yield tokens


def _say(findings: Findings, seen: _Seen, found: Tokens, model: TextSettings) -> None:
    findings.fact("documents", f"{seen.documents:,}, of {seen.characters:,} characters")
    findings.fact("tokens", f"{seen.tokens:,} of the {model.tokenizer} tokenizer")
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
    unknown = int((found == len(CHARACTERS["ascii"])).sum()) if model.tokenizer == "ascii" else 0
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
