"""The model of a converted folder: its trunk and its layers, block by block."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from ...errors import InputError
from .architectures.common import Trunk as Trunk
from .architectures.common import VisionTrunk
from .card import TRUNK, ConvertedCard, block_file, check_file, read_card
from .skeleton import Skeleton


def build(
    folder: Path, only: int | None = None, layers: bool = True, card: ConvertedCard | None = None
) -> tuple[Trunk, list[nn.ModuleList]]:
    """The model in a converted folder: its trunk, and a list of layers for each block.

    `only`: this block's layers alone are loaded, the lists of the others are empty; not `layers`: none are. Tensors
    are mapped from the files, so they take memory when they are read; nothing has a gradient, and dropout is off.
    `card`: the one that the files must be of; none: the folder's own.
    Raises: InputError where a file is missing or not the one that the card names.
    """
    card = card or read_card(folder)
    check_file(folder, card, "config.json")
    skeleton = Skeleton.of_folder(folder, card.architecture, card.model_class, card.dtype)
    trunk, of_model = skeleton.split()
    if isinstance(trunk, VisionTrunk):
        trunk.set_normalisation(card.mean, card.std)
    _load(trunk, folder, card, TRUNK)
    blocks = []
    for block in range(card.blocks):
        wanted = layers and only in (None, block)
        these = of_model[block * card.per_block : (block + 1) * card.per_block] if wanted else []
        blocks.append(nn.ModuleList(these))
        if wanted:
            _load(blocks[-1], folder, card, block_file(block))
    return trunk.eval(), [block.eval() for block in blocks]


def tensors_of(path: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors, mapped from it."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dictionary


def _load(module: nn.Module, folder: Path, card: ConvertedCard, name: str) -> None:
    tensors = tensors_of(check_file(folder, card, name))
    try:
        module.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        rule = f"does not fit this version of transformers, convert the checkpoint again: {first}"
        raise InputError("model.pretrained", str(folder / name), rule) from error
    module.requires_grad_(False)
