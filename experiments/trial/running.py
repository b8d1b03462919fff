"""A trial's run from the start of its processes to their end: an agent a company, and a coordinator.

What is shown of it is read where people would look: the coordinator's status.json, and each company's requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...client.approvals import Request, Requests
from ...client.company import Company
from ...client.joined import JOINED_FILE
from ...errors import ProtocolError, RunError
from ...privacy.accounting import finite
from ...server.standing import STATUS_FILE
from .preparing import Prepared
from .processes import Processes

COORDINATOR = "the coordinator"
_EVERY = 0.3
# Seconds in which agents learn that the run is over.
_LEAVE_WITHIN = 10.0
_INTERRUPTED = 130


@dataclass(frozen=True)
class Look:
    """How a run stands. `state`: starting, waiting, running, finished."""

    state: str = "starting"
    round: int = 0
    rounds: int = 0
    connected: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()


@dataclass
class Following:
    """`tell`: how the run stands, each time that it is looked at. `ask`: a company's request that waits for a person,
    once."""

    tell: Callable[[Look], None]
    ask: Callable[[Path, Request], None]
    _asked: set[tuple[str, str]] = field(default_factory=set)

    def look(self, made: Prepared, pid: int) -> None:
        undecided = []
        for name, home in made.trial.homes.items():
            waiting = [each for each in Requests(home).all() if each.decision == "pending"]
            undecided += [name] if waiting else []
            for request in waiting:
                if (name, request.digest) not in self._asked:
                    self._asked.add((name, request.digest))
                    self.ask(home, request)
        # The run's lock is not tried: the coordinator, which is only starting, would find it taken.
        found = made.run.read_json(STATUS_FILE) or {}
        rounds = made.run.plan().training.rounds
        if found.get("pid") != pid:
            found = {}
        up = {name for name, company in found.get("companies", {}).items() if company["connected"]}
        self.tell(
            Look(
                state=found.get("state", "starting"),
                round=found.get("round", 0),
                rounds=rounds,
                connected=tuple(sorted(up)),
                missing=tuple(sorted(made.trial.homes.keys() - up)),
                undecided=tuple(undecided),
            )
        )


def run_trial(made: Prepared, following: Following) -> None:
    """Start everybody, and follow the run to its end. Whatever ends this, no process is left.

    An interrupted run goes on when this is called again.

    Raises:
        RunError, ProtocolError: a process has ended too early; names it, and says what it said last.
    """
    with Processes() as running:
        for name, home in made.trial.homes.items():
            running.start(name, ["agent", "up", home], agent_log(home))
        words: list[str | Path] = ["coordinator", "run", made.run.path, made.trial.coordinator, "--resume"]
        running.start(COORDINATOR, words, coordinator_log(made))
        try:
            while running.ended(COORDINATOR) is None:
                for name in made.trial.homes:
                    if running.ended(name) is not None:
                        raise ProtocolError(
                            "agent_ended", f"{name}'s agent {running.how(name)}; the same command goes on"
                        )
                following.look(made, running.pid(COORDINATOR))
                time.sleep(_EVERY)
            _check(running)
            following.look(made, running.pid(COORDINATOR))
            _let_leave(made)
        finally:
            running.end(COORDINATOR)  # first: it tells agents that the run goes on later


def agent_log(home: Path) -> Path:
    """What the process of a company's agent says; what it decides is in company.log beside it."""
    return home / "agent.out"


def coordinator_log(made: Prepared) -> Path:
    return made.trial.coordinator / "coordinator.out"


def _check(running: Processes) -> None:
    code = running.ended(COORDINATOR)
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    if code == 3:
        raise ProtocolError("run_stopped", f"{COORDINATOR} {running.how(COORDINATOR)}")
    if code != 0:
        raise RunError(f"{COORDINATOR} {running.how(COORDINATOR)}; the same command goes on")


def _let_leave(made: Prepared) -> None:
    deadline = time.monotonic() + _LEAVE_WITHIN
    while any((home / JOINED_FILE).exists() for home in made.trial.homes.values()):
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


def outcome(made: Prepared) -> dict[str, Any]:
    """What the run has come to, and what it has cost each company by its own ledger.

    Raises: ProtocolError where not every round was done.
    """
    rows, rounds = made.run.metrics(), made.run.plan().training.rounds
    done = sum(row["status"] == "done" for row in rows[1:])
    if done < rounds:
        raise ProtocolError("rounds_failed", f"{done} of {rounds} rounds were done: {made.run.path}")
    last: dict[str, list[float]] = next((row["quality"] for row in reversed(rows) if "quality" in row), {})
    companies: dict[str, dict[str, Any]] = {}
    for name, home in made.trial.homes.items():
        with Company.deployed(home).ledger() as ledger:
            spent = ledger.spent()
        companies[name] = {
            "home": str(home),
            "examples": made.examples[name],
            "epsilon": finite(spent.epsilon),
            "log": str(home / "company.log"),
        }
    return {
        "folder": str(made.folder),
        "run": str(made.run.path),
        "coordinator": str(made.trial.coordinator),
        "rounds": rounds,
        "rounds_done": done,
        "quality": {side: values[-1] for side, values in last.items()},
        "companies": companies,
    }
