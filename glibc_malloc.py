"""How this process's memory allocator treats what is freed."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_LARGEST = 1 << 30


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next allocation instead of giving it back to the system.

    Training frees and allocates the same megabytes at every step; given back, each page of them costs a fault:
    measured as up to a third of a step. Elsewhere than on glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, _LARGEST)


def give_back_freed_memory() -> None:
    """Give what was kept back to the system, as after a run; elsewhere than on glibc nothing happens."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
