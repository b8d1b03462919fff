"""The coordinator as a service: it keeps the SuperLink where there is one, and takes up planned runs one by one.

Each run is a process of its own, so that its end is never the service's. What ends well is done; what is killed or
crashes is gone on with, after a pause that grows; what fails, cannot be used or is stopped waits for a person.
"""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from ..errors import FedblocksError
from ..protocol.until_signalled import until_signalled
from .queue import finished, held, hold, planned
from .run_folder import RunFolder
from .run_lock import SERVING, exclusive, is_held
from .superlink.kept import KeptLink

_LOCK = "coordinator.lock"
_LOOK, _IDLE = 0.2, 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_MOST_CRASHES = 5  # in a row, without a round in between
_ENDS_WITHIN = 120.0
_INTERRUPTED = 130

# What happens: "superlink", "run" or "service", of which run, what of it, and why.
Tell = Callable[[str, str, str, str], None]


class Service:
    """Service(plane, runs, command, link, tell).run()   # until SIGTERM or Ctrl-C

    `command`: what coordinates a run to its end, and says so in JSON on stdout. `link`: the SuperLink, if any.
    """

    def __init__(
        self,
        plane: Path,
        runs_dir: Path,
        command: Callable[[RunFolder], Sequence[str]],
        link: KeptLink | None,
        tell: Tell,
    ) -> None:
        self._plane, self._runs, self._command, self._link, self._tell = plane, runs_dir, command, link, tell
        self._stopped = threading.Event()
        self._crashes: dict[
            str, tuple[int, int]
        ] = {}  # by run: crashes in a row, and rounds done before them
        self._elsewhere = False

    def run(self) -> None:
        """Raises: RunError where another service works for this folder."""
        link = nullcontext() if self._link is None else self._link.running(patient=True)
        with exclusive(self._plane, _LOCK), until_signalled(self._stopped.set), link:
            self._tell("service", "", "up", f"runs of {self._runs} are taken up one by one")
            while not self._stopped.is_set():
                waiting = planned(self._runs)
                if not waiting or (self._link is not None and not self._link.up):
                    self._stopped.wait(_IDLE)
                    continue
                try:
                    self._serve(waiting[0])
                except (FedblocksError, OSError) as error:  # of this run's files alone
                    self._holds(waiting[0], str(error))
            self._tell("service", "", "ended", "")

    def _serve(self, run: RunFolder) -> None:
        name = run.path.name
        if is_held(run.path) or is_held(self._plane, SERVING):
            if not self._elsewhere:
                self._tell(
                    "run", name, "later", "another process coordinates a run here; waiting for its end"
                )
            self._elsewhere = True
            self._stopped.wait(_IDLE)
            return
        self._elsewhere = False
        self._tell("run", name, "begun", "")
        code, said = self._ended(subprocess.Popen(
            list(self._command(run)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
        ))  # fmt: skip
        if code == 0 and finished(run):
            self._crashes.pop(name, None)
            self._tell("run", name, "done", "")
        elif not self._stopped.is_set():
            self._failed(run, code, said)

    def _failed(self, run: RunFolder, code: int, said: str) -> None:
        name, rounds = run.path.name, len(run.metrics())
        if code == _INTERRUPTED:
            self._holds(run, "stopped")
            return
        if code in (2, 3):
            self._holds(run, said or f"exit code {code}")
            return
        crashes, before = self._crashes.get(name, (0, rounds))
        crashes = 1 if rounds > before else crashes + 1
        self._crashes[name] = crashes, rounds
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if crashes >= _MOST_CRASHES:
            self._holds(run, f"its process has ended {crashes} times without a round in between ({how})")
            return
        pause = min(_FIRST_PAUSE * 2 ** (crashes - 1), _LONGEST_PAUSE)
        self._tell("run", name, "again", f"its process has ended ({how}); gone on with in {pause:g} s")
        self._stopped.wait(pause)

    def _holds(self, run: RunFolder, why: str) -> None:
        self._crashes.pop(run.path.name, None)
        if held(run) is None:
            hold(run, why)
        self._tell("run", run.path.name, "waits", why)

    def _ended(self, process: subprocess.Popen[bytes]) -> tuple[int, str]:
        """The exit code of a run's process, and why it failed in its own words."""
        try:
            while process.poll() is None and not self._stopped.wait(_LOOK):
                pass
            if process.poll() is None:
                process.terminate()
            out, _ = process.communicate(timeout=_ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
        return process.returncode, _message(out)


def _message(out: bytes) -> str:
    """Of a command's last line in JSON; empty if it has none."""
    for line in reversed(out.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        return str(found.get("message", "")) if isinstance(found, dict) else ""
    return ""
