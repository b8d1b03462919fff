"""The agent as a service: it takes part in run after run, and writes down how it stands.

HOME/agent.json says since when the process runs, whether it is connected, in which run, and when it last answered.
Whether the process lives is told by HOME/transport/lock, which the operating system frees with it.

What takes memory is not here but in a worker, which comes and goes (see `worker`).
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from ..glibc_malloc import give_back_freed_memory
from ..protocol import private_file
from ..protocol.observability import Observability
from ..protocol.repeating import repeated
from ..protocol.transport.frames import FINAL, Incoming
from ..protocol.until_signalled import until_signalled
from .agent_metrics import AgentMetrics
from .company_log import company_logger
from .dialing import Dialing
from .endpoint import Endpoint, exclusive_agent
from .judging import Judging
from .worker_process import IDLE, Worker

STATUS_FILE = "agent.json"
# What ends the service: a process of another version, or another agent of this company, has to be dealt with first.
_FATAL = FINAL - {"done", "unknown_certificate"}
_SHORT, _LONG = 2.0, 60.0
_WRITE_EVERY = 1.0


class _Handing(Dialing):
    """Hands every message to the worker."""

    def __init__(self, endpoint: Endpoint, daemon: Daemon) -> None:
        super().__init__(endpoint, log=daemon.log)
        self._daemon = daemon

    def _answer(self, message: Incoming) -> bytes:
        return self._daemon.answer(message)


class Daemon:
    """with Daemon(home) as daemon:
        name = daemon.start()      # what an agent needs is checked
        code = daemon.run()        # "stopped" after SIGTERM or Ctrl-C, or why it cannot go on

    `seen`: where Prometheus reads how the agent stands. `tell`: what is for whoever keeps this process's output.
    `idle`: seconds after which a worker without work ends.
    """

    def __init__(
        self,
        home: Path,
        seen: Observability | None = None,
        tell: Callable[[str], None] = lambda line: None,
        *,
        json_log: bool = False,
        idle: float = IDLE,
    ) -> None:
        self._home = home
        self._metrics = AgentMetrics(seen, connected=self._connected) if seen else None
        told = self._metrics.answered if self._metrics else lambda kind, code: None
        self._worker = Worker(home, json_log=json_log, idle=idle, told=told, tell=tell)
        self._stopped = threading.Event()
        self._agent: Dialing | None = None
        self._started = _now()
        self._written: dict[str, Any] = {}
        self.runs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._worker.__exit__(None, None, None)

    def start(self) -> str:
        """The company's name, if nothing is missing. Raises: as `Worker.start`."""
        return self._worker.start()

    def run(self) -> str:
        """Answer until told to stop. Raises: ProtocolError("busy") while another agent of this home runs."""
        with (
            exclusive_agent(self._home),
            until_signalled(self.stop),
            self._writing(),
            Judging(self._home) as judging,
        ):
            while not self._stopped.is_set():
                self._agent = _Handing(Endpoint.of(self._home), self)
                code = self._agent.serve()
                if code == "done":
                    self.runs += 1
                    self._worker.leave(self._agent.served)
                    judging.begin()
                    give_back_freed_memory()
                if code in _FATAL:
                    return code
                # After a run the coordinator is away, or about to begin the next one.
                pause = _SHORT if code == "done" else _LONG
                self._stopped.wait(pause * random.uniform(0.5, 1.5))
        return "stopped"

    def answer(self, message: Incoming) -> bytes:
        if self._metrics:
            self._metrics.came()
        return self._worker.answer(message)

    def log(self, line: str) -> None:
        """Append to the company's own log."""
        company_logger(self._home).info(line)

    def _connected(self) -> bool:
        return self._agent is not None and self._agent.connected

    def stop(self) -> None:
        """End after the message in hand."""
        self._stopped.set()
        if self._agent is not None:
            self._agent.stop()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with repeated(self._write, _WRITE_EVERY):
                yield
        finally:
            (self._home / STATUS_FILE).unlink(missing_ok=True)

    def _write(self) -> None:
        agent = self._agent
        found = {
            "pid": os.getpid(),
            "started": self._started,
            "connected_since": agent.connected_since if agent else None,
            "last_message": agent.last_message if agent else None,
            "fault": agent.fault if agent else None,
            "runs_done": self.runs,
        }
        if found != self._written:
            with suppress(
                OSError
            ):  # a full disk must not end the agent: what it must write, its handlers check
                private_file.write(self._home / STATUS_FILE, json.dumps(found).encode())
                self._written = found


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
