"""Where the converted folders that this process may use lie.

Plans and policies name a converted model by its digest. Folders are remembered in an environment variable, so that
processes started by this one know them too.
"""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import InputError
from .card import ConvertedCard, read_card

VARIABLE = "FEDBLOCKS_PRETRAINED"


def register(folder: Path) -> str:
    """Remember a converted folder and return its digest. Raises: InputError where it is none."""
    folder = folder.resolve()
    digest = read_card(folder).digest
    if os.pathsep in str(folder):
        raise InputError("model.pretrained", str(folder), f"the path may not contain {os.pathsep!r}")
    known = _folders()
    if folder not in known:
        os.environ[VARIABLE] = os.pathsep.join(map(str, [*known, folder]))
    return digest


def converted(digest: str) -> tuple[Path, ConvertedCard]:
    """The folder and card of the converted model of this digest.

    Raises: InputError where no folder known on this machine has it.
    """
    for folder in _folders():
        try:
            card = read_card(folder)
        except InputError:
            continue  # moved or written anew since it was registered
        if card.digest == digest:
            return folder, card
    raise InputError(
        "model.pretrained",
        digest,
        "no converted model of this digest is known on this machine; convert the same checkpoint into the same "
        "number of blocks (`fedblocks convert`) and name its folder",
    )


def _folders() -> list[Path]:
    return [Path(each) for each in os.environ.get(VARIABLE, "").split(os.pathsep) if each]
