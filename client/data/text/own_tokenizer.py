"""A pretrained model's own tokenizer: its tokenizer.json, with the special tokens that its post-processor adds.

The file may say how its author padded and truncated; what counts here is the model's length and padding alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ....errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Trained

TOKENIZER_FILE = "tokenizer.json"
_AT_ONCE = 1024  # texts
_DIGEST = re.compile(r"[0-9a-f]{64}")

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class OwnTokenizer:
    """`vocabulary`: tokens, added ones included; `special`: how many the post-processor adds to a text; `pad`: that
    of its own padding, none where it has none.

    tokenizer = OwnTokenizer.of("model.pretrained", folder)
    tokens, lengths = tokenizer.padded(["a text", "another"], 128, pad=0)   # (2, 128) int64, (2,)
    """

    vocabulary: int
    special: int
    pad: int | None
    _whole: Trained

    @classmethod
    def of(cls, field: str, folder: Path | str) -> OwnTokenizer:
        """Raises: InputError where the folder has no tokenizer that can be read."""
        path = Path(folder) / TOKENIZER_FILE
        if not path.is_file():
            raise InputError(
                field, str(folder), f"has no {TOKENIZER_FILE}: texts need the model's own tokenizer"
            )
        try:
            from tokenizers import Tokenizer as Trained
        except ImportError:
            rule = "its tokenizer needs the package tokenizers: pip install 'fedblocks[pretrained]'"
            raise InputError(field, str(folder), rule) from None
        try:
            found = Trained.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise InputError(field, str(path), f"not a tokenizer.json ({error})") from None
        pad = None if found.padding is None else int(found.padding["pad_id"])
        found.no_padding()
        found.no_truncation()
        special = int(found.num_special_tokens_to_add(is_pair=False))
        # Numbers of tokens need not be without gaps.
        largest = max(found.get_vocab(with_added_tokens=True).values(), default=-1)
        return cls(largest + 1, special, pad, found)

    def check(self, field: str, *, vocabulary: int, length: int, pad: int | None) -> None:
        """Raises: InputError where the tokenizer is not that of a model with these."""
        if self.vocabulary > vocabulary:
            rule = f"the tokenizer has {self.vocabulary} tokens: it is not this model's"
            raise InputError(f"{field}.vocabulary", vocabulary, rule)
        if self.special >= length:
            rule = f"the tokenizer adds {self.special} tokens to each text, which leaves no room for it"
            raise InputError(f"{field}.sequence_length", length, rule)
        if pad is not None and self.pad is not None and self.pad != pad:
            rule = f"the tokenizer fills up with token {self.pad}: it is not this model's"
            raise InputError(f"{field}.pad", pad, rule)

    def lengths(self, texts: Sequence[str]) -> Tokens:
        """(N,) how many tokens each text has, special ones included."""
        return np.array([len(ids) for ids in self.whole(texts)], dtype=np.int64)

    def whole(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """The tokens of each text, however many; not `special`: without those that the post-processor adds."""
        found: list[list[int]] = []
        for start in range(0, len(texts), _AT_ONCE):
            part = list(texts[start : start + _AT_ONCE])
            found += [each.ids for each in self._whole.encode_batch(part, add_special_tokens=special)]
        return found

    def padded(self, texts: Sequence[str], length: int, pad: int) -> tuple[Tokens, Tokens]:
        """Tokens (N, length) int64, cut as the tokenizer cuts (special tokens stay) and filled up on the right with
        `pad`; and how many tokens each text has before it is cut, (N,)."""
        whole = self.whole(texts)
        lengths = np.array([len(ids) for ids in whole], dtype=np.int64)
        long = np.flatnonzero(lengths > length).tolist()
        if long:
            self._whole.enable_truncation(length)
            try:
                for i, ids in zip(long, self.whole([texts[i] for i in long]), strict=True):
                    whole[i] = ids
            finally:
                self._whole.no_truncation()
        tokens = np.full((len(texts), length), pad, dtype=np.int64)
        for row, ids in zip(tokens, whole, strict=True):
            row[: len(ids)] = ids
        return tokens, lengths

    def decode(self, tokens: Tokens) -> str:
        """The text of some tokens, special ones left out."""
        return str(self._whole.decode(tokens.tolist(), skip_special_tokens=True))


def folder_of(pretrained: str) -> Path:
    """Where the converted model of this digest lies on this machine; a folder as it is."""
    if not _DIGEST.fullmatch(pretrained):
        return Path(pretrained)
    from ....blocks.pretrained.places import converted

    folder, _ = converted(pretrained)
    return folder
