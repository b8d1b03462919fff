"""The commands of a trial as processes: started with a log each, watched, and ended in every case.

with Processes() as running:
    running.start("acme", ["agent", "up", "trial/acme"], Path("trial/acme/agent.out"))
    running.ended("acme")        # None while it runs, else its exit code
# left: all have ended
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ...atomic_file import OWNER_ONLY

# Seconds in which a process that was told to end does so: it may have a training in hand.
ENDS_WITHIN = 30.0
_GUARDED = [sys.executable, "-P", "-m", "fedblocks.cli.guarded"]


@dataclass(frozen=True)
class _Started:
    process: subprocess.Popen[bytes]
    log: Path


class Processes:
    """`fedblocks` commands by name. They end with this process, whatever ends it (see `cli/guarded.py`)."""

    def __init__(self) -> None:
        self._started: dict[str, _Started] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(*self._started)

    def start(self, name: str, words: Sequence[str | Path], log: Path) -> None:
        """Start `fedblocks WORDS`; what it says is added to `log`, which is its owner's alone."""
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, OWNER_ONLY)
        try:
            # In a session of its own: Ctrl-C ends the coordinator first, and companies after it.
            process = subprocess.Popen(
                [*_GUARDED, *map(str, words)],
                stdin=subprocess.PIPE, stdout=descriptor, stderr=descriptor, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(descriptor)
        self._started[name] = _Started(process, log)

    def pid(self, name: str) -> int:
        return self._started[name].process.pid

    def ended(self, name: str) -> int | None:
        """Its exit code, negative if a signal ended it; None while it runs."""
        return self._started[name].process.poll()

    def how(self, name: str) -> str:
        """How a process has ended, and the last it said: for people."""
        code = self.ended(name)
        if code is None:
            return "still runs"
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        said = self._started[name].log.read_text("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "")
        return f"{how}{f': {last}' if last and code > 0 else ''} ({self._started[name].log})"

    def end(self, *names: str) -> None:
        """Tell these to end and wait until they have; whoever takes too long is killed, and so are they all if the
        wait is interrupted."""
        mine = [self._started[name].process for name in names]
        try:
            for process in mine:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + ENDS_WITHIN
            for process in mine:
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    continue
        finally:
            for process in mine:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                if process.stdin is not None:
                    process.stdin.close()
