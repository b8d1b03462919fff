"""Files of a company's home: for their owner alone from the moment they are made.

What fedblocks writes itself it narrows to mode 600 if anything has widened it. What the company wrote (its data, its
keys, its rules) is left alone and refused by name: others may have read it already, which only the company can judge.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import PrivacyError

_OURS = ("ledger.sqlite*", "steps.sqlite*", "company.log", "shared-*.safetensors", "transport/lock")
_THEIRS = ("policy.toml", "roster.toml", "identity.key", "data.npz")


def opener(path: str, flags: int) -> int:
    """For `open`: a file that is made gets mode 600, whatever the umask."""
    return os.open(path, flags, 0o600)


def create(path: Path, content: bytes) -> None:
    """A new file of mode 600; FileExistsError rather than a replaced one."""
    with open(path, "xb", opener=opener) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """The whole of a text file, in UTF-8; a new one gets mode 600."""
    with open(path, "w", encoding="utf-8", opener=opener) as file:
        file.write(text)


def mode_for_others(path: Path) -> int | None:
    """The file's mode if others than its owner may do anything with it."""
    mode = stat.S_IMODE(path.stat().st_mode)
    return mode if mode & 0o077 else None


def check_home(home: Path) -> None:
    """Narrow what fedblocks wrote there; PrivacyError naming the first thing of the company's that others may use."""
    for path in (home, *(home / name for name in _THEIRS)):
        mode = mode_for_others(path) if path.exists() else None
        if mode is not None:
            wanted = "700" if path == home else "600"
            raise PrivacyError(
                f"{path} is open to others (mode {mode:03o}, expected {wanted}): chmod {wanted} {path}"
            )
    for pattern in _OURS:
        for path in home.glob(pattern):
            if mode_for_others(path) is not None:
                path.chmod(0o600)
