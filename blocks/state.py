"""Block state: which tensors belong to block b, which are shared, and how they are kept on disk.

The block is the unit of transfer: a company receives the shared state once and afterwards only the
state of the block it trains. Personal and pinned tensors (`groups`) are in no state: the first do not leave their
company, the second every party has.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import RunError
from .denoiser import Denoiser

State = dict[str, Tensor]

_OUTSIDE = ("personal", "pinned")
_SHARED = "shared.safetensors"
_BLOCKS = "blocks"


@dataclass(frozen=True)
class ModelState:
    """A model's state dict, but for personal and pinned tensors, cut into the shared part and one part per block;
    names as in the model."""

    shared: State
    blocks: tuple[State, ...]


def split(model: Denoiser) -> ModelState:
    """Cut a model's state: every tensor but personal and pinned ones is in exactly one part. Tensors are copies on
    the CPU."""
    parts = _parts(model)
    shared, *blocks = ({name: t.detach().cpu().clone() for name, t in part.items()} for part in parts)
    return ModelState(shared, tuple(blocks))


def _parts(model: Denoiser) -> list[State]:
    """The model's own tensors: the shared part, then one part a block."""
    own = model.state_dict()
    return [
        {name: own[name] for name, group in model.groups(block).items() if group not in _OUTSIDE}
        for block in (None, *range(len(model.blocks)))
    ]


def state_bytes(model: Denoiser) -> int:
    """Of all parts of a model's state together; the model may be one without values (on "meta")."""
    return sum(tensor.nbytes for part in _parts(model) for tensor in part.values())


def merge(model: Denoiser, *parts: State) -> None:
    """Load parts back into the model, in place; a name or shape that no state of the model has is refused."""
    own = {name: tensor for part in _parts(model) for name, tensor in part.items()}
    for part in parts:
        for name, tensor in part.items():
            if name not in own or own[name].shape != tensor.shape:
                raise RunError(
                    f"{name}: this model has no tensor of that name and shape {tuple(tensor.shape)}"
                )
            own[name].copy_(tensor)


def check_part(model: Denoiser, part: State, block: int | None) -> None:
    """Refuse what is not exactly the named block's (none: the shared) part, or is not finite."""
    expected = _parts(model)[0 if block is None else 1 + block]
    if part.keys() != expected.keys():
        raise RunError(
            f"{sorted(part.keys() ^ expected.keys())[0]}: missing, or not of this part of the model"
        )
    for name, tensor in part.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise RunError(f"{name}: expected {expected[name].dtype} of shape {tuple(expected[name].shape)}")
        if not torch.isfinite(tensor).all():
            raise RunError(f"{name}: holds values that are not finite")


def block_parameters(block: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The trainable parameters of a block in the fixed order in which updates are flattened."""
    return [(name, p) for name, p in sorted(block.named_parameters()) if p.requires_grad]


def digest(*parts: State) -> bytes:
    """SHA-256 over names, shapes, types and bytes of the tensors, in sorted order."""
    h = hashlib.sha256()
    # By name alone: two parts that share a name, which only a sender can make, have no order of tensors.
    for name, tensor in sorted((item for part in parts for item in part.items()), key=itemgetter(0)):
        header = f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|"
        h.update(len(header).to_bytes(4, "big") + header.encode())
        # As bytes: NumPy does not have every type. Its empty arrays have strides that no view allows.
        if tensor.numel():
            h.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return h.digest()


def save_state(state: ModelState, folder: Path) -> None:
    """Write shared.safetensors, which says how many blocks there are, and block-<b>.safetensors into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state.shared, folder / _SHARED, {_BLOCKS: str(len(state.blocks))})
    for b, block in enumerate(state.blocks):
        save_file(block, folder / f"block-{b}.safetensors")


def load_state(folder: Path) -> ModelState:
    """Read what `save_state` wrote; RunError names the file that is missing or cannot be read."""
    shared = read_part(folder / _SHARED)
    with safe_open(folder / _SHARED, "pt") as file:
        count = (file.metadata() or {}).get(_BLOCKS, "")
    if not re.fullmatch(r"[0-9]{1,4}", count):
        raise RunError(
            f"{folder}: {_SHARED} does not say how many blocks there are; it is of another version"
        )
    blocks = tuple(read_part(folder / f"block-{b}.safetensors") for b in range(int(count)))
    return ModelState(shared, blocks)


def read_part(path: Path) -> State:
    """The tensors of one file; RunError if it is missing or cannot be read."""
    if not path.is_file():
        raise RunError(f"{path.parent}: no whole model state here ({path.name} is missing)")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from None


def flatten(tensors: list[Tensor]) -> Tensor:
    """Concatenate to one vector (P,)."""
    return torch.cat([t.reshape(-1) for t in tensors])


def unflatten(vector: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Cut a vector (P,) back into tensors shaped as `like`."""
    return [v.view_as(t) for v, t in zip(vector.split([t.numel() for t in like]), like, strict=True)]
