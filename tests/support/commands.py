"""Runs a `fedblocks` command under limits of the machine, or some code, in a process that has its imports already."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from support.fork_server import fork_server

_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_OVERRIDES = 0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER


@dataclass(frozen=True)
class Done:
    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Machine:
    """`largest_file` bytes, as a device that is full; `memory` bytes of addresses, and `data` of them; `ordinary`:
    without root's right to pass over file modes."""

    largest_file: int | None = None
    memory: int | None = None
    data: int | None = None
    ordinary: bool = False
    environment: tuple[tuple[str, str], ...] = ()


def run_command(words: list[str], folder: Path, machine: Machine, timeout: float = 120) -> Done:
    """Exit code, stdout and stderr of `fedblocks WORDS`, run in `folder`."""
    return _run(_command, (words, folder, machine), timeout)


def run_code(code: str, *words: str | Path, timeout: float = 120) -> Done:
    """What `python -c CODE WORDS` gives; the exit code of a process that was killed is its signal's, below zero."""
    return _run(_code, (code, [str(word) for word in words]), timeout)


def _run(target: Callable[..., None], given: tuple[object, ...], timeout: float) -> Done:
    context = fork_server()
    ends = [context.Pipe(duplex=False) for _ in range(2)]
    process = context.Process(target=_child, args=([write for _, write in ends], target, given))
    process.start()
    for _, write in ends:
        write.close()
    with ThreadPoolExecutor(2) as pool:
        said = [pool.submit(_read_all, read.fileno()) for read, _ in ends]
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
        return Done(
            process.exitcode if process.exitcode is not None else -1, *(each.result() for each in said)
        )


def _read_all(number: int) -> str:
    pieces = []
    while piece := os.read(number, 1 << 16):
        pieces.append(piece)
    return b"".join(pieces).decode("utf-8", "backslashreplace")


def _child(said: list[Connection], target: Callable[..., None], given: tuple[object, ...]) -> None:
    for number, write in enumerate(said, start=1):
        os.dup2(write.fileno(), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    import torch

    torch.set_num_threads(1)
    try:
        target(*given)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _code(code: str, words: list[str]) -> None:
    sys.argv = ["-c", *words]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def _command(words: list[str], folder: Path, machine: Machine) -> None:
    os.environ.update(machine.environment)
    os.chdir(folder)
    if machine.largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (machine.largest_file, machine.largest_file))
    if machine.memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (machine.memory, machine.memory))
    if machine.data is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (machine.data, machine.data))
    if machine.ordinary and os.geteuid() == 0:
        _drop_overrides()

    from fedblocks.cli import main as command

    command.people.file = sys.stderr
    sys.argv = ["fedblocks", *words]
    command.main()


def _drop_overrides() -> None:
    """capset(2): root is then held to the modes of files as anybody else."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for i in range(3):
        sets[i] &= ~_OVERRIDES
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")
