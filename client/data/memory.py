"""A reader gets the memory that this machine has left, and no more.

A small file may ask for any amount: columns that repeat one value, a sheet with one cell in its last row,
a line without an end. Without a limit the system ends the process that is largest, which may be the company's agent.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import InputError

_KEPT = 256 << 20  # bytes for everybody else
_LEAST = 512 << 20
_CGROUP = Path("/sys/fs/cgroup")


@contextmanager
def within_memory(field: str, source: str) -> Iterator[None]:
    """Raises: InputError where reading needs more than is free. Where the system does not tell, there is no limit."""
    free, before = free_memory(), resource.getrlimit(resource.RLIMIT_DATA)
    if free is None:
        yield
        return
    used = used_memory()
    set_already = [each for each in before if each != resource.RLIM_INFINITY]
    limit = min([used + max(free - _KEPT, _LEAST), *set_already])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
        return
    except MemoryError:
        pass
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    # Raised here, where what was read is let go of.
    room = max(0, limit - used) >> 20
    rule = (
        f"needs more than the {room:,} MB of memory that are free; read a part of it, or on another machine"
    )
    raise InputError(field, source, rule)


def used_memory() -> int:
    """Bytes that count against the limit: data of this process, whether in memory or not."""
    return _kilobytes(Path("/proc/self/status"), "VmData") or 0


def free_memory() -> int | None:
    """Bytes that this process may still take, by the machine and by its control group; none where neither tells."""
    found = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
    told = [found] if found is not None else []
    for group in _groups():
        most, now = (_number(group / name) for name in ("memory.max", "memory.current"))
        if most is not None and now is not None:
            told.append(max(0, most - now))
    return min(told, default=None)


def _groups() -> list[Path]:
    """The control group of this process (version 2), and those around it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), None)
    if own is None:
        return []
    group = _CGROUP / own
    return [each for each in (group, *group.parents) if each.is_relative_to(_CGROUP)]


def _kilobytes(file: Path, name: str) -> int | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith(f"{name}:")), None)
    return None if found is None else int(found) << 10


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
