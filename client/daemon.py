"""The agent as a service: it takes part in run after run, and writes down how it stands.

HOME/agent.json says since when the process runs, whether it is connected, in which run, and when it last answered.
Whether the process lives is told by HOME/transport/lock, which the operating system frees with it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from types import FrameType
from typing import Any

from flwr.app import Context, RecordDict

from ..errors import LedgerError, ProtocolError
from ..privacy.accounting import finite
from ..protocol import private_file
from ..protocol.observability import Observability
from ..protocol.repeating import repeated
from ..protocol.transport.frames import FINAL
from .agent import Agent
from .agent_metrics import AgentMetrics
from .company import Company
from .endpoint import Endpoint, exclusive_agent
from .judging import Judging

STATUS_FILE = "agent.json"
# What ends the service: a process of another version, or another agent of this company, has to be dealt with first.
_FATAL = FINAL - {"done", "unknown_certificate"}
_SHORT, _LONG = 2.0, 60.0
_WRITE_EVERY = 1.0


class Daemon:
    """code = Daemon(company).run()   # "stopped" after SIGTERM or Ctrl-C, or why it cannot go on

    `seen`: where Prometheus reads how the agent stands. `tell`: what is for whoever keeps this process's output.
    """

    def __init__(
        self,
        company: Company,
        seen: Observability | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._company, self._tell = company, tell
        self._metrics = AgentMetrics(seen, connected=self._connected) if seen else None
        self._stopped = threading.Event()
        self._agent: Agent | None = None
        self._started = _now()
        self._written: dict[str, Any] = {}
        self.runs = 0

    def run(self) -> str:
        """Answer until told to stop. Raises: ProtocolError("busy") while another agent of this home runs."""
        from .app import app, channel_of

        company = self._company
        answer = self._metrics.counted(app) if self._metrics else app
        context = Context(1, 1, {"company-home": str(company.home)}, RecordDict(), {})
        judging = Judging(company.home)
        with exclusive_agent(company.home), self._until_signalled(), self._writing(), judging:
            self._note_record()
            while not self._stopped.is_set():
                self._agent = Agent(Endpoint.of(company.home), answer, context, log=company.log)
                code = self._agent.serve()
                if code == "done":
                    self.runs += 1
                    company.leave(channel_of(context))
                    context.state.clear()
                    judging.begin()
                    self._note_record()
                if code in _FATAL:
                    return code
                # After a run the coordinator is away, or about to begin the next one.
                pause = _SHORT if code == "done" else _LONG
                self._stopped.wait(pause * random.uniform(0.5, 1.5))
        return "stopped"

    def _note_record(self) -> None:
        """Say the record's last hash: kept elsewhere, it shows whether another history was written."""
        with suppress(LedgerError):
            now = self._company.decisions.head()
            self._tell(f"record of decisions: {now.lines} lines, the last hash {now.head}")

    def _connected(self) -> bool:
        return self._agent is not None and self._agent.connected

    def stop(self) -> None:
        """End after the message in hand."""
        self._stopped.set()
        if self._agent is not None:
            self._agent.stop()

    @contextmanager
    def _until_signalled(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            threading.Thread(target=self.stop).start()  # locks must not be taken in a handler

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with repeated(self._write, _WRITE_EVERY):
                yield
        finally:
            (self._company.home / STATUS_FILE).unlink(missing_ok=True)

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
                private_file.write(self._company.home / STATUS_FILE, json.dumps(found).encode())
                self._written = found


def status_of(company: Company) -> dict[str, Any]:
    """How the company's agent stands, and its ledger."""
    try:
        with exclusive_agent(company.home):
            running = False
    except ProtocolError:
        running = True
    told: dict[str, Any] = {}
    if running:
        with suppress(OSError, ValueError):
            told = json.loads((company.home / STATUS_FILE).read_bytes())
    with company.ledger() as ledger:
        spent, joined = ledger.spent(), company.joined.load(company.name, ledger)
    return {
        "company": company.name,
        "running": running,
        "pid": told.get("pid"),
        "started": told.get("started"),
        "connected_since": told.get("connected_since"),
        "last_message": told.get("last_message"),
        "fault": told.get("fault"),
        "runs_done": told.get("runs_done", 0),
        "run": json.loads(joined.plan)["run"] if joined is not None else None,
        "pending": sum(each.decision == "pending" for each in company.requests.all()),
        "epsilon_spent": finite(spent.epsilon),
        "epsilon_ceiling": company.policy.epsilon_ceiling,
    }


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
