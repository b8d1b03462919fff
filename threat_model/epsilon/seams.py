"""Replacing a function for a while: to watch what a step does, or to plant a defect in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[Any]:
    """`owner.name` is `value` meanwhile; yields what was there. Not for use beside other threads that train."""
    before = vars(owner).get(name)
    found = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield found
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
