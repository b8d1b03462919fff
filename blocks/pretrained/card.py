"""What a converted folder holds; pydantic alone, so that settings can be read without torch or transformers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from ...errors import InputError
from ..settings import MOST_BLOCKS, Part, require

CARD = "converted.json"
TRUNK, REST = "trunk.safetensors", "rest.safetensors"
_LARGEST = 1 << 20  # bytes of a card


def block_file(block: int) -> str:
    """The name of the file with a block's tensors."""
    return f"block-{block}.safetensors"


class ConvertedCard(Part):
    """A converted checkpoint: the sizes of its model, and the digest of every file.

    `longest` is the number of positions the model has, none for images. `mean` and `std` are what images in [0, 1]
    are normalised by, a channel each.
    """

    format: Literal[1] = 1
    name: str = Field(max_length=200)
    architecture: str
    model_class: str
    kind: Literal["encoder", "vision", "decoder"]
    hidden_size: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    blocks: int = Field(ge=1, le=MOST_BLOCKS)
    vocabulary: int | None = Field(None, ge=1)
    longest: int | None = Field(None, ge=1)
    pad: int | None = Field(None, ge=0)
    channels: int | None = Field(None, ge=1)
    image_size: int | None = Field(None, ge=1)
    patch_size: int | None = Field(None, ge=1)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: Literal["float32", "bfloat16"]
    source: str = Field(pattern="^[0-9a-f]{64}$")
    files: dict[str, str]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        require(self.layers % self.blocks == 0, "blocks", self.blocks, f"must divide layers={self.layers}")
        wanted = {"config.json", TRUNK, *(block_file(block) for block in range(self.blocks))}
        missing = sorted(wanted - self.files.keys())
        require(not missing, "files", missing, "has no entry for these")
        plain = [name for name in self.files if Path(name).name != name or name in (".", "..")]
        require(not plain, "files", plain, "a file's name has no folder in it")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of all but the name, which is that of a company's own folder."""
        content = self.model_dump(mode="json", exclude={"name"})
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def per_block(self) -> int:
        """Layers of a block."""
        return self.layers // self.blocks


def read_card(folder: Path) -> ConvertedCard:
    """The card of a converted folder. Raises: InputError where it is none."""
    path = folder / CARD
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("too large")
        return ConvertedCard.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        rule = f"has no {CARD}: give a folder that `fedblocks convert` has made"
    except (OSError, ValueError, ValidationError) as error:
        rule = f"{CARD} cannot be read: {str(error).splitlines()[0]}"
    raise InputError("model.pretrained", str(folder), rule)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_seen: dict[str, tuple[tuple[int, int, int], str]] = {}


def check_file(folder: Path, card: ConvertedCard, name: str) -> Path:
    """The path of one of the folder's files, whose content is what the card says.

    A file is read once in a process, and again when its size or time of change differs.
    Raises: InputError where it is missing or another one.
    """
    path = folder / name
    try:
        stat = path.stat()
        key, mark = str(path.resolve()), (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if key not in _seen or _seen[key][0] != mark:
            _seen[key] = (mark, sha256_of(path))
    except OSError as error:
        raise InputError("model.pretrained", str(path), f"cannot be read: {error.strerror}") from error
    if _seen[key][1] != card.files[name]:
        raise InputError("model.pretrained", str(path), f"is not the file that {CARD} has the digest of")
    return path
