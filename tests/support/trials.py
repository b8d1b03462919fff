"""Processes of a trial, found by the folder that their command lines name."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def living(folder: Path) -> dict[int, str]:
    """Command lines, by process, of the commands of ours that name a path in the folder and have not ended."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            if str(folder) in line and " -m fedblocks." in line and state != "Z":
                found[int(process.name)] = line
    return found
