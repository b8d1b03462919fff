"""Keeps Flower's SuperLink running as a child process, and its registered nodes those of the roster.

    with KeptLink(place, tell).running() as control:
        ...

It is started again whenever it ends, after a pause that grows to a minute. Its database keeps the registered nodes
and the messages under way.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from ...errors import FedblocksError, RunError
from ...protocol.federation.keys import make_folder
from ..run_lock import exclusive, is_held
from .control import LINK_ERRORS, Changes, Control
from .place import LinkPlace

_MODULE = "fedblocks.server.superlink.process"
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_STEADY = 60.0  # seconds of work after which an end is no longer the last one's consequence
_STARTS_WITHIN, _ENDS_WITHIN = 120.0, 15.0
_LOOK, _LOOK_FOR_LIFE, _SILENT = 0.5, 10.0, 3
_LONGEST_LINE = 500

_KEEPER = "keeper.lock"

# "up", "down" and "nodes", with what there is to say of it.
Tell = Callable[[str, str], None]


class KeptLink:
    """`tell`: called in a thread of its own with what happens."""

    def __init__(self, place: LinkPlace, tell: Tell) -> None:
        self._place, self._tell = place, tell
        self._stopped, self._up = threading.Event(), threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._roster, self._failed = 0.0, False

    @contextmanager
    def running(self, *, patient: bool = False) -> Iterator[Control]:
        """The SuperLink, as long as the block lasts; `patient`: whether or not it comes up at once.

        Raises: RunError where another process keeps it, or it does not come up, with the last that it said.
        """
        check_installation()
        make_folder(self._place.folder)
        with exclusive(self._place.folder, _KEEPER):
            thread = threading.Thread(target=self._keep, name="superlink")
            thread.start()
            try:
                if not patient:
                    self._await()
                yield Control(self._place.socket)
            finally:
                self._stopped.set()
                thread.join()

    @property
    def up(self) -> bool:
        return self._up.is_set()

    def _await(self) -> None:
        deadline = time.monotonic() + _STARTS_WITHIN
        while not self._up.wait(_LOOK):
            if self._failed or time.monotonic() > deadline:
                raise RunError(f"the SuperLink does not come up: {self._said()}; more in {self._place.log}")

    def _keep(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stopped.is_set():
            started = time.monotonic()
            try:
                ended = self._once()
            except OSError as error:  # no process could be started
                ended = error.strerror or type(error).__name__
            self._up.clear()
            if self._stopped.is_set():
                return
            if time.monotonic() - started > _STEADY:
                pause = _FIRST_PAUSE
            self._failed = True
            self._tell("down", f"{ended}; it is started again in {pause:g} s")
            self._stopped.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _once(self) -> str:
        """From the process's start to its end; how it ended."""
        process, control = self._started(), Control(self._place.socket)
        looked, silent = time.monotonic(), 0
        try:
            while process.poll() is None and not self._stopped.wait(_LOOK):
                if not self._up.is_set() and control.answers():
                    self._register(control)
                    self._up.set()
                    self._tell("up", f"{self._place.host}:{self._place.port}, process {process.pid}")
                elif self._up.is_set() and self._roster != self._seen():
                    self._register(control)
                elif self._up.is_set() and time.monotonic() - looked > _LOOK_FOR_LIFE:
                    silent = 0 if control.answers() else silent + 1
                    looked = time.monotonic()
                    if silent >= _SILENT:
                        return "it does not answer"
            return f"exit code {process.poll()}: {self._said()}"
        finally:
            _end(process)

    def _started(self) -> subprocess.Popen[bytes]:
        place = self._place
        command = [sys.executable, "-P", "-m", _MODULE, str(place.plane), place.host, str(place.port)]
        with self._words.open("wb") as file:
            return subprocess.Popen(
                [*command, str(os.getpid())],
                env=place.environment,
                cwd=place.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which ends that one in its own time
            )

    def _register(self, control: Control) -> None:
        try:
            seen = self._seen()
            changes = control.register(self._place.node_keys())
            self._roster = seen
        except (*LINK_ERRORS, FedblocksError) as error:
            self._tell("nodes", f"could not be registered ({type(error).__name__}); tried again")
            return
        if text := _in_words(changes):
            self._tell("nodes", text)

    def _seen(self) -> float:
        with suppress(OSError):
            return self._place.roster_seen()
        return self._roster

    @property
    def _words(self) -> Path:
        return self._place.folder / "superlink.err"

    def _said(self) -> str:
        """The last line that its process has said."""
        with suppress(OSError):
            lines = [line for line in self._words.read_text("utf-8", "replace").splitlines() if line.strip()]
            return lines[-1].strip()[-_LONGEST_LINE:] if lines else "it said nothing"
        return "it said nothing"


@contextmanager
def superlink(place: LinkPlace, tell: Tell) -> Iterator[Control]:
    """The SuperLink that another process keeps, or one of its own for the time of the block.

    Raises: RunError where it does not come up.
    """
    kept = KeptLink(place, tell)
    with ExitStack() as stack:
        try:
            control = stack.enter_context(kept.running())
        except RunError:
            control, deadline = Control(place.socket), time.monotonic() + _STARTS_WITHIN
            if not is_held(place.folder, _KEEPER):
                raise
            while not control.answers():
                if time.monotonic() > deadline:
                    raise RunError(f"the SuperLink is not up; its log says more: {place.log}") from None
                time.sleep(_LOOK)
        yield control


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _in_words(changes: Changes) -> str:
    said = []
    if changes.registered:
        said.append(f"registered: {', '.join(changes.registered)}")
    if changes.unregistered:
        said.append(f"no longer registered: {', '.join(changes.unregistered)}")
    if changes.refused:
        said.append(
            f"not registered: {', '.join(changes.refused)}, whose key was unregistered before, and Flower takes none "
            "again; new ones are made with `fedblocks company request HOME --rotate`"
        )
    return "; ".join(said)


def check_installation() -> None:
    """Raises: RunError where Flower cannot make a database: it splits the path of its own files at blanks."""
    found = find_spec("flwr")
    place = "" if found is None else str(found.origin)
    if any(letter.isspace() for letter in place):
        why = "Flower's SuperLink cannot run from a path with a blank; install fedblocks somewhere else"
        raise RunError(f"{Path(place).parent}: {why}")
