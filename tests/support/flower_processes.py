"""A federation over Flower in real processes: `fedblocks` commands and what these start, ended whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedblocks.cli.company_source import source_of
from fedblocks.cli.coordinator_up import _ITSELF
from fedblocks.client.company import Company
from fedblocks.client.home import make_home
from fedblocks.client.importing import import_data
from fedblocks.client.policy import load_policy
from fedblocks.experiments.bench.transport_flower import free_port
from fedblocks.experiments.simulation.planning import for_companies, plan_run
from fedblocks.privacy.ledger_file import LedgerRow
from fedblocks.protocol.federation.trial import set_up
from fedblocks.protocol.identity import load_roster
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings
from support.federation import COMPANIES

PATIENT = 900.0  # seconds that a phase through Flower may take on a loaded machine, several times over


@dataclass
class Command:
    """A command in a session of its own, to be ended with all that it has started; its output in files."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    @property
    def said(self) -> str:
        return self.err.read_text(errors="replace")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What it has printed in JSON, a line each."""
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def end(self, seconds: float = PATIENT) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:g} s: {self.said[-3000:]}") from None

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """The process with all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class FlowerFederation:
    """Three companies with rules, keys and a ledger, their coordinator's folder, and the processes started so far."""

    folder: Path
    plane: Path
    homes: dict[str, Path]
    started: list[Command] = field(default_factory=list)

    def start(self, *words: str | Path) -> Command:
        place = (
            self.folder
            / "logs"
            / f"{len(self.started):02d}-{'-'.join(Path(word).name for word in words[:2])}"
        )
        place.parent.mkdir(exist_ok=True)
        out, err = place.with_suffix(".out"), place.with_suffix(".err")
        with out.open("wb") as told, err.open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _ITSELF, *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=said,
                cwd=self.folder,
                start_new_session=True,
            )
        command = Command(process, out, err)
        self.started.append(command)
        return command

    def told(self, *words: str | Path) -> dict[str, Any]:
        """What a command that succeeds says in JSON."""
        command = self.start(*words, "--json")
        assert command.end(180) == 0, command.said
        return command.lines[-1]

    def nodes(self) -> list[Command]:
        return [self.start("supernode", home) for home in self.homes.values()]

    def rows(self, company: str) -> list[LedgerRow]:
        """The releases that a company was charged for."""
        home = self.homes[company]
        with Company(home, load_policy(home / "policy.toml")).ledger() as ledger:
            return ledger.rows()

    def stop(self) -> None:
        for command in reversed(self.started):
            command.kill()  # also of one that has ended: what it has started may live


def until(
    holds: Callable[[], Any], what: str, seconds: float = PATIENT, said: Sequence[Command] = ()
) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            words = "\n".join(f"{each.err.name}: {each.said[-2000:]}" for each in said)
            raise AssertionError(f"within {seconds:g} s: {what}\n{words}")
        time.sleep(0.1)


def rounds_of(run: RunFolder) -> int:
    """How many rounds are done, as the metrics have it."""
    with suppress(FileNotFoundError):
        return max(0, run.metrics_file.read_bytes().count(b"\n") - 1)
    return 0


@contextmanager
def flower_federation(folder: Path) -> Iterator[FlowerFederation]:
    """From a trial's kits; nothing started, and no company has rules or data."""
    made = set_up(folder / "trial", list(COMPANIES), port=free_port(), superlink_port=free_port())
    federation = FlowerFederation(folder, made.coordinator, made.homes)
    try:
        yield federation
    finally:
        federation.stop()


def ready(federation: FlowerFederation, small: SimulationSettings, rounds: int, **training: Any) -> RunFolder:
    """A planned run, and companies with rules, data and a ledger, that need nobody's approval."""
    changes = {"rounds": rounds, "evaluate_every": 1000, **training}
    settings = small.model_copy(update={"training": small.training.model_copy(update=changes)})
    roster = load_roster(federation.plane / "roster.toml")
    run = plan_run(for_companies(settings, roster), roster, federation.folder / "runs" / "first")
    assert small.data.private is not None
    told = source_of(str(small.data.private.source), None, str(run.path / "plan.json"), None, None)
    for name, home in federation.homes.items():
        policy = make_home(home, name, epsilon_ceiling=8.0, delta=1e-5)
        policy.write_text(policy.read_text().replace('approval = "first"', 'approval = "never"'))
        import_data(home, told.source, told.model, told.match_contrast)
        Company.deployed(home).create_ledger()
    return run
