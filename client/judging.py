"""Judging delivered models beside the agent, in a process of its own.

Not within the agent: an answer must not wait for it, the model's memory is needed for the next run, and what goes
wrong there must not end the agent.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from .model_folders import unmeasured

_MODULE = f"{__package__}.models"
_ENDS_WITHIN = 5.0


class Judging(AbstractContextManager["Judging"]):
    """with Judging(home) as judging: ...; judging.begin()   # the process, if any, ends with the context"""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Judging:
        self.begin()  # what an earlier agent has left undone
        return self

    def begin(self) -> None:
        """Begin, if there is anything to judge and nothing is being judged."""
        running = self._process is not None and self._process.poll() is None
        if not running and unmeasured(self._home):
            nowhere = subprocess.DEVNULL
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, str(self._home)],
                stdin=nowhere,
                stdout=nowhere,
                stderr=nowhere,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_ENDS_WITHIN)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
