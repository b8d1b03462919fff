"""Files that hold a secret of the company's: made once, and for their owner alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def create(path: Path, content: bytes) -> None:
    """A new file of mode 600; FileExistsError rather than a replaced one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def mode_for_others(path: Path) -> int | None:
    """The file's mode if others than its owner may do anything with it."""
    mode = stat.S_IMODE(path.stat().st_mode)
    return mode if mode & 0o077 else None
