"""A state as bytes, as it travels: one safetensors blob (https://github.com/huggingface/safetensors, "Format").

The format's reader checks that names are unique and that the tensors, by their types and shapes, fill the bytes
exactly; what it leaves open, how long its header is and what types there are, is bounded here.
"""

from __future__ import annotations

import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save

from ..errors import InputError, ProtocolError
from .state import State

# What the tensors of a model may hold, by the format's names.
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LARGEST_HEADER = 1 << 20  # bytes; about 100 a tensor
MOST_TENSORS = 8192
_MOST_DIMENSIONS = 16
_LENGTH = 8  # bytes that say how long the header is


def to_bytes(state: State) -> bytes:
    """The blob of a state; the same tensors give the same bytes.

    Raises:
        InputError: a tensor of a type that no state may have, or more tensors than `from_bytes` takes.
    """
    if len(state) > MOST_TENSORS:
        raise InputError("state", len(state), f"at most {MOST_TENSORS} tensors travel at once")
    for name, tensor in state.items():
        if tensor.dtype not in TYPES.values():
            raise InputError(f"state.{name}", tensor.dtype, f"must be one of {', '.join(TYPES)}")
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})


def from_bytes(data: bytes) -> State:
    """The state of a blob, whoever sent it; takes no more room than its bytes and what a header of 1 MiB may say.

    Raises:
        ProtocolError: "malformed", for bytes that are not exactly such a blob.
    """
    if len(data) < _LENGTH or int.from_bytes(data[:_LENGTH], "little") > LARGEST_HEADER:
        raise ProtocolError("malformed", "a state without a header, or with one that is too long")
    try:
        views = deserialize(data)
        if len(views) > MOST_TENSORS:
            raise ProtocolError("malformed", f"a state of more than {MOST_TENSORS} tensors")
        return {name: _tensor(view["dtype"], view["shape"], view["data"]) for name, view in views}
    # The reader's own, then PyTorch's of a shape that no tensor has.
    except (SafetensorError, RuntimeError, OverflowError, TypeError) as error:
        raise ProtocolError("malformed", f"a state cannot be read ({type(error).__name__})") from None


def _tensor(kind: str, shape: list[int], data: bytearray) -> torch.Tensor:
    dtype = TYPES.get(kind)
    if dtype is None or len(shape) > _MOST_DIMENSIONS:
        raise ProtocolError("malformed", f"a tensor of type {kind} and {len(shape)} dimensions")
    if not data:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(data, dtype=dtype)
    # PyTorch takes a truth value for one byte that is 0 or 1; with others what it computes is undefined.
    if dtype is torch.bool and bool((flat.view(torch.uint8) > 1).any()):
        raise ProtocolError("malformed", "a truth value that is neither")
    return flat.reshape(shape)
