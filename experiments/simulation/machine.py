"""Whether this machine has what a run needs, asked before anything is spent."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import torch

from ...blocks.families import ModelSettings
from ...blocks.size import parameters_of
from ...errors import InputError

_BYTES = 4  # of a value in float32


def check_device(device: str) -> None:
    """Refuse a device that PyTorch does not have here. Raises: InputError."""
    try:
        torch.zeros(1, device=device).add(1).item()  # one that only plans, as meta, has no values
    except Exception as error:  # each of PyTorch's devices has its own way to be missing
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError("device", device, f"not available here ({reason[:80]})") from None


def check_writable(folder: Path) -> None:
    """Refuse a folder, which is made if need be, in which nothing can be made. Raises: OSError with its path."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


def check_memory(model: ModelSettings, device: str) -> None:
    """Refuse a model of which training one block needs more memory than there is. Raises: InputError.

    Counted are the weights of all blocks, and of the block that trains the gradient and the optimiser's two moments:
    less than what a run takes, so that nothing is refused that would fit.
    """
    values = parameters_of(model)
    needed = _BYTES * (values + 3 * values // model.blocks)
    there = available_memory(device)
    if there is not None and needed > there:
        rule = f"training it takes {needed / 2**30:.1f} GiB at least, {there / 2**30:.1f} GiB are there"
        raise InputError("model", f"{values:,} parameters", rule)


def available_memory(device: str) -> int | None:
    """Bytes that this device can still give; none where the system does not tell."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    try:
        found = re.search(
            r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text("ascii"), re.MULTILINE
        )
        if found is not None:
            return int(found[1]) << 10
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
