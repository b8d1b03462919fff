"""The agent's end of its worker (see `worker`): starts it when there is something to do, ends it when there is not.

with Worker(home) as worker:
    name = worker.start()                  # checks what an agent needs; then
    content = worker.answer(message)       # message by message
    worker.leave("digits-1")               # the run is over
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import FedblocksError, ProtocolError, RunError
from ..protocol.transport.frames import Incoming
from .worker_pipe import receive, send

# Seconds without a message after which the worker ends. Another one takes some seconds to start, which in a run would
# be added to every phase in which one company keeps the others waiting.
IDLE, IDLE_IN_A_RUN = 60.0, 900.0
_ENDS_WITHIN = 10.0
Told = Callable[[str, str | None], None]


class Worker:
    """`told`: of every answer, the message's kind and the code of a refusal; see `agent_metrics.observed`.

    `tell`: the last hash of the record of decisions, for whoever keeps this process's output: kept elsewhere, it
    shows whether another history was written.
    """

    def __init__(
        self,
        home: Path,
        *,
        json_log: bool = False,
        idle: float = IDLE,
        told: Told = lambda kind, code: None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._command = [sys.executable, "-P", "-m", "fedblocks.client.worker", str(home)]
        self._command += ["json"] if json_log else []
        self._idle, self._told, self._tell = idle, told, tell
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._timer: threading.Timer | None = None
        self._state = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def start(self) -> str:
        """Check what any run needs; the company's name.

        Raises: RunError, FedblocksError or OSError with what is wrong; see `readiness.startable`.
        """
        found, _ = self._ask({"do": "start"})
        if "os" in found:
            number, text, path = found["os"]
            raise OSError(number, text, path)
        if "error" in found:
            raise RunError(found["error"])
        if "stopped" in found:
            raise FedblocksError(found["stopped"])
        self._tell_record(found)
        return str(found["company"])

    def answer(self, message: Incoming) -> bytes:
        """The content of the reply. Raises: ProtocolError("internal") where the worker has ended in the middle."""
        told = {"do": "answer", "id": message.id, "kind": message.kind, "timeout": message.timeout}
        found, (content, self._state) = self._ask(told, message.content, self._state)
        if found:
            self._told(found["kind"], found["code"])
            if found["code"] is None:
                self._rest_after(max(self._idle, IDLE_IN_A_RUN))
        return content

    def leave(self, run: str) -> None:
        """Forget the run, which is over, unless another one has been joined since; give its memory back."""
        state, self._state = self._state, b""
        with suppress(ProtocolError):
            found, _ = self._ask({"do": "leave", "run": run}, state)
            if not found.get("left", True):
                self._state = state
            self._tell_record(found)
        self._end()

    def _tell_record(self, found: dict[str, Any]) -> None:
        if "record" in found:
            self._tell(found["record"])

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    def _ask(self, told: dict[str, Any], *parts: bytes) -> tuple[dict[str, Any], list[bytes]]:
        with self._lock:
            self._rest()
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):
                send(process.stdin, told, *parts)
            found = receive(process.stdout)
            if found is None:
                code = process.wait()
                self._process = None
                raise ProtocolError("internal", f"the agent's worker has ended (exit code {code})")
            self._set_timer(self._idle)
            return found

    def _rest_after(self, seconds: float) -> None:
        with self._lock:
            self._rest()
            self._set_timer(seconds)

    def _set_timer(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self._process

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        with self._lock:
            self._rest()
            process, self._process = self._process, None
            if process is None:
                return
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):
                process.stdin.close()  # it ends by that
            try:
                process.wait(_ENDS_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
