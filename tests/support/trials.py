"""Of trials: their processes, found by the folder that command lines name, and their companies' examples."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fedblocks.blocks.examples import Examples


def rows_of(*parts: Examples) -> list[bytes]:
    """Every example of the parts as bytes, in sorted order: the same list for the same examples, however split."""
    return sorted(
        inputs.numpy().tobytes() + targets.numpy().tobytes()
        for part in parts
        for inputs, targets in zip(part.inputs, part.targets, strict=True)
    )


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
