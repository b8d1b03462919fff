"""A company's randomness on tape: passed on as it comes, counted, and played again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...privacy.randomness import Randomness

T = TypeVar("T", bytes, NDArray[np.uint64], NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_])
Bytes = bytes


class Tape(Randomness):
    """What `inner` gives; between `kept` and its end, `rewind` gives it again from where `kept` began.

    `bits`: how much randomness has been asked for, played again or not.
    """

    def __init__(self, inner: Randomness) -> None:
        self._inner, self.bits = inner, 0.0
        self._tape: list[object] | None = None
        self._position = 0

    @contextmanager
    def kept(self) -> Iterator[None]:
        self._tape, self._position = [], 0
        try:
            yield
        finally:
            self._tape = None

    def rewind(self) -> None:
        self._position = 0

    def _next(self, bits: float, make: Callable[[], T]) -> T:
        self.bits += bits
        if self._tape is None:
            return make()
        if self._position == len(self._tape):
            self._tape.append(make())
        value = self._tape[self._position]
        self._position += 1
        # A copy: those who draw change what they are given in place.
        return value.copy() if isinstance(value, np.ndarray) else value  # type: ignore[return-value]

    def bytes(self, n: int) -> Bytes:
        return self._next(8 * n, lambda: self._inner.bytes(n))

    def words(self, n: int) -> NDArray[np.uint64]:
        return self._next(64 * n, lambda: self._inner.words(n))

    def uniform(self, n: int) -> NDArray[np.float64]:
        return self._next(52 * n, lambda: self._inner.uniform(n))

    def normal(self, n: int) -> NDArray[np.float64]:
        return self._next(64 * n, lambda: self._inner.normal(n))

    def bernoulli(self, n: int, q: float) -> NDArray[np.bool_]:
        return self._next(52 * n, lambda: self._inner.bernoulli(n, q))

    def integers(self, high: int, n: int) -> NDArray[np.int64]:
        return self._next(math.log2(high) * n, lambda: self._inner.integers(high, n))

    def permutation(self, n: int) -> NDArray[np.int64]:
        return self._next(64 * n, lambda: self._inner.permutation(n))

    def __repr__(self) -> str:
        return "Tape(<redacted>)"
