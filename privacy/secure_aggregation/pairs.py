"""The keys of a pair of companies, computed once where both are in one process: in simulations alone.

Either end of a pair computes the same keys (see `keys`), and a simulation holds the private keys of both. So it may
keep for the other end what one has computed: a pure function of what it is kept by. No bit of any message or sum
changes. It is kept in memory only, at most MOST keys, and is gone when the simulation ends.

    with computed_once():
        ...                     # the companies of a simulation at work
    once(inputs, compute)       # compute(), or what it returned at the other end

Off unless a simulation has switched it on: the agent of a real company, which is one end alone, keeps no key.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MOST = 1 << 17  # some 50 MB
_lock = threading.Lock()
_kept: dict[tuple[bytes, ...], bytes] | None = None


@contextmanager
def computed_once() -> Iterator[None]:
    """For all threads of this process, until the context ends."""
    global _kept
    before, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = before


def once(inputs: tuple[bytes, ...], compute: Callable[[], bytes], *, again: bool = False) -> bytes:
    """`compute()`, or what it returned for the same `inputs`, which are all that it depends on.

    It is forgotten when the other end has taken it, unless it will be needed `again`. What `compute` raises is kept
    by nobody.
    """
    kept = _kept
    if kept is None:
        return compute()
    with _lock:
        found = kept.get(inputs) if again else kept.pop(inputs, None)
    if found is None:
        found = compute()
        with _lock:
            while len(kept) >= MOST:  # the oldest first
                del kept[next(iter(kept))]
            kept[inputs] = found
    return found
