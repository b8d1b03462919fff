"""One process at a time in a run folder: two would both train, charge and log every round."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import RunError

# In a coordinator's folder: held by the process that coordinates a run with its companies.
SERVING = "serving.lock"


@contextmanager
def exclusive(folder: Path, name: str = "run.lock") -> Iterator[None]:
    """Hold a lock on `folder`, which the same thread may take again.

    The operating system releases it when the process ends, however that happens.

    Raises:
        RunError: names the process that holds it.
    """
    path = folder.resolve() / name
    lock = FileLock(path, timeout=0, mode=0o600, is_singleton=True, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        holder = path.read_text("ascii", "replace").strip() or "another"
        raise RunError(
            f"{folder}: process {holder} is at work here; wait until it is done, or end it"
        ) from None
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be locked ({error.strerror}); it must lie where locks work"
        ) from None
    try:
        path.write_text(f"{os.getpid()}\n", "ascii")
        yield
    finally:
        lock.release()


def is_held(folder: Path, name: str = "run.lock") -> bool:
    """Whether another process holds the lock."""
    try:
        with exclusive(folder, name):
            return False
    except RunError:
        return True


def holder_of(folder: Path, name: str = "run.lock") -> int | None:
    """The process that holds the lock, or held it last."""
    try:
        return int((folder.resolve() / name).read_text("ascii"))
    except (OSError, ValueError):
        return None
