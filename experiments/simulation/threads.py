"""How many cores an operation of PyTorch takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_core() -> Iterator[None]:
    """Small models gain nothing from a second core for one operation; companies train side by side.

    The sums of a matrix product follow the number of cores, so that results do not depend on the machine's either.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
