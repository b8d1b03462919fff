"""Companies of a simulation make their models at the same time, each in a thread of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from fedblocks.blocks.pretrained.skeleton import quiet
from fedblocks.blocks.pretrained.small import small_model
from fedblocks.blocks.pretrained.trunk import build


@pytest.fixture
def often_switched() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_models_are_made_in_threads(often_switched: None) -> None:
    """Would catch what one thread changes for all of them, as a hook on every module that is made: the other threads
    fail in the middle, and their companies refuse the run."""
    from transformers.utils import logging

    folder, level = small_model("vision", 4, 2), logging.get_verbosity()

    def made(_: int) -> bool:
        _, blocks = build(folder)
        plain = nn.Linear(3, 3)  # in the thread of a model that has its tensors
        return not plain.weight.is_meta and all(
            p.device == torch.device("cpu") for part in blocks for p in part.parameters()
        )

    def silent(_: int) -> bool:
        with quiet():
            return bool(logging.get_verbosity() == 50)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(made, range(24)))
        assert all(threads.map(silent, range(400)))
    assert logging.get_verbosity() == level
