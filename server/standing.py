"""How a run stands, for whoever looks from another process: status.json in its folder, while it is coordinated.

Nothing in it comes from a company's data: of a company it tells name, connection and the codes of its answers.
Whether the run is being coordinated is told by run.lock, which the operating system frees with the process.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from flwr.serverapp import Grid

from .. import atomic_file
from ..errors import InputError
from ..protocol.repeating import repeated
from .assignment import assign
from .delivery import DELIVERED_FILE
from .events import CompaniesAwaited, Event, RoundFailed, RoundFinished, RunFinished, RunStarted
from .phases import PhasedGrid
from .queue import held
from .run_folder import RunFolder
from .run_lock import holder_of, is_held

STATUS_FILE = "status.json"
_WRITE_EVERY = 1.0


class Standing:
    """Follows a run's events, and which companies are connected; give it to `coordinate` as a subscriber.

    standing = Standing(run, companies, lambda: service.connected)
    with standing.written():
        coordinate(standing.watching(grid), run, [standing.tell])
    """

    def __init__(
        self, run: RunFolder, companies: Sequence[str], connected: Callable[[], Sequence[str]]
    ) -> None:
        self._run, self._plan, self._connected = run, run.plan(), connected
        self._lock = threading.Lock()
        self._since = dict.fromkeys(companies, "")
        self._up = dict.fromkeys(companies, False)
        self._last: dict[str, str] = {}  # the code of each company's last absence, "" where it took part
        self._found: dict[str, Any] = {"state": "starting", "round": 0, "rounds": 0, "failed_in_a_row": 0}
        self._found["blocks"] = []
        self._phases: list[str] = []  # of each group that waits for companies
        self._written = b""

    def tell(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, RunStarted):
                self._found |= {"state": "waiting", "round": event.done, "rounds": event.rounds}
                self._found["blocks"] = self._blocks(event.done + 1)
            if isinstance(event, CompaniesAwaited):
                self._found["state"] = "waiting"
            if isinstance(event, RoundFailed):
                self._found |= {"state": "waiting", "failed_in_a_row": event.in_a_row}
                self._last |= {name: code for name, (_, code) in event.absent.items()}
            if isinstance(event, RoundFinished):
                row = event.row
                self._found |= {"state": "running", "round": event.round, "failed_in_a_row": 0}
                self._found["blocks"] = self._blocks(event.round + 1)
                self._last |= dict.fromkeys(row.get("survivors", ()), "")
                self._last |= {name: code for name, (_, code) in row.get("absent", {}).items()}
                if "quality" in row:
                    self._found["quality"] = {name: values[-1] for name, values in row["quality"].items()}
            if isinstance(event, RunFinished):
                self._found["state"] = "finished"

    def watching(self, grid: Grid) -> Grid:
        """The grid; which phase waits for companies is written down."""
        return PhasedGrid(grid, self._phase)

    @contextmanager
    def _phase(self, phase: str) -> Iterator[None]:
        with self._lock:
            self._phases.append(phase)
        try:
            yield
        finally:
            with self._lock:
                self._phases.remove(phase)

    def _blocks(self, round_: int) -> list[int]:
        """Those of a round with every company; none past the last."""
        if round_ > self._plan.training.rounds:
            return []
        with suppress(InputError):  # too few companies in the roster
            return sorted({task.block for task in assign(round_, tuple(self._since), self._plan)})
        return []

    @contextmanager
    def written(self) -> Iterator[None]:
        """Keep the file up to date until the run ends, however it ends."""
        try:
            with repeated(self._write, _WRITE_EVERY):
                yield
        except BaseException as error:
            with self._lock:
                self._found |= {"state": "stopped", "why": _why(error)}
            raise
        finally:
            self._write()

    def _write(self) -> None:
        up, now = set(self._connected()), datetime.now().astimezone().isoformat(timespec="seconds")
        with self._lock:
            for name, was in self._up.items():
                if (name in up) != was or not self._since[name]:
                    self._up[name], self._since[name] = name in up, now
            companies = {
                name: {"connected": self._up[name], "since": self._since[name], "last": self._last.get(name)}
                for name in sorted(self._up)
            }
            phase = self._phases[-1] if self._phases else None
            found = {"pid": os.getpid(), **self._found, "phase": phase, "companies": companies}
        content = json.dumps(found, indent=2).encode()
        if content != self._written:
            with suppress(OSError):  # a full disk is noticed where it matters, at the checkpoint
                atomic_file.write(self._run.path / STATUS_FILE, content)
                self._written = content


def standing_of(run: RunFolder) -> dict[str, Any]:
    """How a run stands: `running` while a process coordinates it; then of its companies, too."""
    told = run.read_json(STATUS_FILE) or {}
    running = is_held(run.path)
    rows = run.metrics()
    plan = run.plan()
    return {
        "run": plan.run,
        "running": running,
        "state": told.get("state", "prepared") if running or rows else "prepared",
        "why": None if running else told.get("why"),
        "waits": None if running else held(run),
        "phase": told.get("phase") if running else None,
        "blocks": told.get("blocks", []) if running else [],
        "round": rows[-1]["round"] if rows else 0,
        "rounds": plan.training.rounds,
        "rounds_done": sum(row["status"] == "done" for row in rows[1:]),
        "failed_in_a_row": told.get("failed_in_a_row", 0),
        "quality": told.get("quality"),
        "evaluation": next((row["evaluation"] for row in reversed(rows) if "evaluation" in row), None),
        "model_with": list((run.read_json(DELIVERED_FILE) or {}).get("companies", ())),
        "pid": told.get("pid") if running and told.get("pid") == holder_of(run.path) else None,
        "companies": told.get("companies", {}) if running else {},
    }


def _why(error: BaseException) -> str:
    return str(error) or type(error).__name__
