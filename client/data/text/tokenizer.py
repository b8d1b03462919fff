"""From text to tokens and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ....errors import InputError

Tokens = npt.NDArray[np.int64]

CHARACTERS = {
    "ascii": "\n" + "".join(map(chr, range(32, 127))),
    "text8": " abcdefghijklmnopqrstuvwxyz",
}
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Tokenizer:
    """`encode` gives tokens in [0, vocabulary); `decode` is its inverse on text that the vocabulary covers.

    ascii: newline and the 95 printable characters, and one token for all others. text8: space and a to z;
    capitals become small and all others a space. bytes: UTF-8. Otherwise the path of a tokenizer.json.

        tokenizer = Tokenizer.of("model.tokenizer", "ascii")
        tokenizer.decode(tokenizer.encode("def f():"))
    """

    vocabulary: int
    encode: Callable[[str], Tokens]
    decode: Callable[[Tokens], str]

    @classmethod
    def of(cls, field: str, name: str) -> Tokenizer:
        """`field` names the setting in errors."""
        if name == "ascii":
            return _by_character(CHARACTERS[name] + UNKNOWN, rest=len(CHARACTERS[name]))
        if name == "text8":
            small = _by_character(CHARACTERS[name], rest=0)
            return cls(small.vocabulary, lambda text: small.encode(text.lower()), small.decode)
        if name == "bytes":
            return cls(
                256,
                lambda text: np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64),
                lambda tokens: tokens.astype(np.uint8).tobytes().decode("utf-8", "replace"),
            )
        return _from_file(field, name)


def _by_character(characters: str, rest: int) -> Tokenizer:
    """Token i is characters[i]; every character that is not among them becomes `rest`."""
    table = np.full(129, rest, dtype=np.int64)  # ASCII, and one place for all beyond
    for token, character in enumerate(characters):
        table[min(ord(character), 128)] = token

    def encode(text: str) -> Tokens:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        found: Tokens = table[np.minimum(codes, 128)]
        return found

    return Tokenizer(len(characters), encode, lambda tokens: "".join(characters[i] for i in tokens.tolist()))


def _from_file(field: str, path: str) -> Tokenizer:
    if not Path(path).is_file():
        raise InputError(field, path, "no such tokenizer.json; built-in: ascii, text8, bytes")
    from tokenizers import Tokenizer as Trained

    try:
        trained = Trained.from_file(path)
    except Exception as error:  # the library raises plain Exception
        raise InputError(field, path, f"not a tokenizer.json ({error})") from None
    return Tokenizer(
        trained.get_vocab_size(),
        lambda text: np.array(trained.encode(text, add_special_tokens=False).ids, dtype=np.int64),
        lambda tokens: str(trained.decode(tokens.tolist(), skip_special_tokens=False)),
    )
