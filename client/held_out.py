"""A company's held-out examples: on which it judges models, and on which nothing is ever trained.

HOME/
    held_out.npz   the examples
    held_out.key   32 random bytes, this home's own; made once and kept, so that an example never changes sides

An example is held out if HMAC-SHA256 of its values under the home's key, as a number in [0, 1), lies below the share.
So it depends on that example alone: one more or one less moves no other between the parts, which adjacency of data
sets demands of whatever is computed on either. Examples of equal values are on one side. Who has no key cannot choose
an example that is, or is not, held out. Of records that have groups it is the group's value instead, so that a group
is on one side as a whole.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..blocks.examples import Examples, Groups
from ..errors import InputError
from ..protocol import private_file

HELD_OUT_FILE, KEY_FILE = "held_out.npz", "held_out.key"
MOST_SHARE = 0.5
_KEY_BYTES = 32
_PURPOSE = b"fedblocks held-out 1\0"


def own_key(home: Path) -> bytes:
    """The home's key, or a new one, which is the home's once it is kept. Raises: InputError for a damaged file."""
    path = home / KEY_FILE
    if not os.path.lexists(path):
        return secrets.token_bytes(_KEY_BYTES)
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        rule = "not a key: restore it; a new one, made when it is gone, holds out other examples"
        raise InputError("held_out", str(path), rule)
    return key


def keep_key(home: Path, key: bytes) -> None:
    """Make it the home's, unless it is already."""
    if not os.path.lexists(home / KEY_FILE):
        private_file.create(home / KEY_FILE, key)


def split(examples: Examples, share: float, key: bytes) -> tuple[Examples, Examples]:
    """(examples to train on, examples held out), each in their order."""
    out = held_out_places(examples, share, key)
    places = torch.from_numpy(out)
    return examples[~places], examples[places]


def held_out_places(examples: Examples, share: float, key: bytes) -> npt.NDArray[np.bool_]:
    """Which examples are held out at this share, (N,) bool."""
    limit = int(share * 2**64)
    if examples.groups is not None:
        return _grouped_places(examples.groups, limit, key)
    rows = [_bytes_of(examples.inputs), _bytes_of(examples.targets)]
    out = np.zeros(len(examples), bool)
    for i, (inputs, targets) in enumerate(zip(*rows, strict=True)):
        found = hmac.digest(key, _PURPOSE + inputs.tobytes() + targets.tobytes(), "sha256")
        out[i] = int.from_bytes(found[:8], "big") < limit
    return out


def _grouped_places(groups: Groups, limit: int, key: bytes) -> npt.NDArray[np.bool_]:
    """By the digest of each group's value."""
    out = np.zeros(len(groups), bool)
    some = np.empty(len(groups), np.int64)
    some[groups.numbers] = np.arange(len(groups.numbers))  # a record of each group
    for number, own in enumerate(groups.keys[torch.from_numpy(some)].numpy()):
        found = hmac.digest(key, _PURPOSE + own.tobytes(), "sha256")
        out[number] = int.from_bytes(found[:8], "big") < limit
    return out[groups.numbers]


def fingerprint(data: Examples, held_out: Examples | None) -> bytes:
    """SHA-256 of all examples of a home; of one that holds nothing out, that of its training examples."""
    if held_out is None:
        return data.digest
    return hashlib.sha256(data.digest + held_out.digest).digest()


def _bytes_of(values: torch.Tensor) -> npt.NDArray[np.uint8]:
    """(N, bytes of an example). Zero has one sign, since the two are equal."""
    flat = values.reshape(len(values), -1)
    if flat.is_floating_point():
        flat = flat + 0.0
    return np.ascontiguousarray(flat.numpy()).view(np.uint8).reshape(len(values), -1)
