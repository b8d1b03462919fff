"""A small disk that can be filled: a file system of its own in memory."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_ELSEWHERE = Path("/dev/shm")  # in a container commonly 64 MB; what is larger is not filled
_MOST = 512 << 20


@dataclass(frozen=True)
class SmallDisk:
    """A folder on a disk of its own. Files are taken for it by `fill`, and given back by `free`."""

    folder: Path

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Leave `leave` bytes free, of those that an ordinary user may use."""
        with self._ballast.open("ab") as file:
            while (size := shutil.disk_usage(self.folder).free - leave) > 0:
                try:
                    file.write(bytes(min(size, 1 << 20)))
                    file.flush()
                except OSError:
                    return

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    """`folder` on a disk of its own: a tmpfs that is mounted there, which takes the right to mount; else a folder in
    /dev/shm, where that is small. Skips the test where there is neither."""
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={megabytes}m,mode=700"
    mounted = (
        os.geteuid() == 0
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True
        ).returncode
        == 0
    )
    if mounted:
        try:
            yield SmallDisk(folder)
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        return
    if not _ELSEWHERE.is_dir() or shutil.disk_usage(_ELSEWHERE).total > _MOST:
        pytest.skip("no small disk: this user may not mount one, and /dev/shm is large or missing")
    elsewhere = _ELSEWHERE / f"fedblocks-{os.getpid()}"
    elsewhere.mkdir(mode=0o700)
    folder.rmdir()
    folder.symlink_to(elsewhere)
    try:
        yield SmallDisk(elsewhere)
    finally:
        shutil.rmtree(elsewhere)
