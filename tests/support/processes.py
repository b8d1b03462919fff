"""A federation of real processes on loopback: a coordinator and companies, each of them `fedblocks` commands.

Processes are forked from one that has its imports already, so that one takes a tenth of a second to start.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fedblocks.client.company import Company
from fedblocks.client.policy import load_policy
from fedblocks.experiments.bench.transport_flower import free_port
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.privacy.ledger_file import LedgerRow
from fedblocks.protocol.transport import OwnCertificate
from fedblocks.protocol.transport.certificates import COORDINATOR
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings
from support.deployed import without_seeds
from support.fork_server import fork_server

Hook = Callable[[], None]


def until(holds: Callable[[], Any], what: str, seconds: float = 300.0) -> None:
    """Wait until it holds; fails loudly after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"within {seconds:g} s: {what}"
        time.sleep(0.02)


@dataclass
class Command:
    """A `fedblocks` command in a process of its own, its output in files."""

    process: BaseProcess
    out: Path
    err: Path
    coordinates: bool = False

    @property
    def said(self) -> str:
        return self.err.read_text()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; after SIGKILL the process is gone when this returns."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.join(10.0)

    def end(self, seconds: float = 300.0) -> int:
        """Its exit code."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds:g} s: {self.said[-2000:]}"
        return self.process.exitcode

    @property
    def running(self) -> bool:
        return self.process.is_alive()


@dataclass
class Federation:
    """A prepared run, its companies' homes, and the processes that were started for it."""

    run: RunFolder
    plane: Path
    logs: Path
    port: int
    started: list[Command] = field(default_factory=list)
    companies: list[Path] = field(default_factory=list)

    @property
    def homes(self) -> list[Path]:
        return self.companies or sorted(self.run.companies.iterdir())

    def start(self, *words: str | Path, hook: Hook | None = None) -> Command:
        """A `fedblocks` command; `hook` is called in its process before it begins (see `support.hooks`)."""
        place = self.logs / str(len(self.started))
        out, err = place.with_suffix(".out"), place.with_suffix(".err")
        out.touch()
        err.touch()
        process = fork_server().Process(
            target=_child, args=([str(word) for word in words], out, err, hook), daemon=True
        )
        process.start()
        command = Command(process, out, err, coordinates="serve" in words or "coordinator" in words)
        self.started.append(command)
        return command

    def agent(self, company: int, *words: str, hook: Hook | None = None) -> Command:
        return self.start("transport", "agent", self.homes[company], "--json", *words, hook=hook)

    def agents(self) -> list[Command]:
        return [self.agent(i) for i in range(len(self.homes))]

    def serve(self, hook: Hook | None = None) -> Command:
        return self.start("transport", "serve", self.run.path, self.plane, "--json", hook=hook)

    def again(self, run: RunFolder, name: str) -> None:
        """From now on another run of the same companies, prepared from the same public model."""
        run.path.mkdir()
        shutil.copytree(self.run.evaluation, run.evaluation)
        shutil.copytree(self.run.checkpoints / "round-0000", run.checkpoints / "round-0000")
        shutil.copy(self.run.roster_file, run.roster_file)
        run.write_settings(RunFolder.existing(self.run.path).settings(), self.run.plan().changed(run=name))
        self.companies, self.run = self.homes, run

    def rounds(self) -> int:
        """How many rounds are done, as the metrics have it."""
        with suppress(FileNotFoundError):
            return max(0, self.run.metrics_file.read_bytes().count(b"\n") - 1)
        return 0

    def rows(self, company: int) -> list[LedgerRow]:
        """The releases that a company was charged for."""
        home = self.homes[company]
        with Company(home, load_policy(home / "policy.toml")).ledger() as ledger:
            return ledger.rows()

    def statuses(self) -> list[str]:
        return [row["status"] for row in self.run.metrics()[1:]]

    def stop(self) -> None:
        for command in self.started:
            if command.running:
                with suppress(ProcessLookupError):
                    command.kill(signal.SIGCONT)
                    command.kill()


def _child(words: list[str], out: Path, err: Path, hook: Hook | None) -> None:
    for path, number in ((out, 1), (err, 2)):
        descriptor = os.open(path, os.O_WRONLY)
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    import torch

    from fedblocks.cli import main, serving, transport

    torch.set_num_threads(1)
    for module in (main, transport, serving):
        if hasattr(module, "people"):
            module.people.file = sys.stderr
    sys.argv = ["fedblocks", *words]
    if hook is not None:
        hook()
    main.main()


@contextmanager
def federation(
    settings: SimulationSettings,
    folder: Path,
    *,
    companies: int = 3,
    rounds: int = 4,
    through: int | None = None,
) -> Iterator[Federation]:
    """Prepared and set up as people would by hand, nothing started. `through`: agents dial this port instead."""
    count = settings.companies.model_copy(update={"count": companies})
    training = settings.training.model_copy(update={"rounds": rounds, "evaluate_every": 1000})
    run = prepare(settings.model_copy(update={"companies": count, "training": training}), folder / "run")
    made = Federation(run, folder / "plane", folder / "logs", free_port())
    made.logs.mkdir()
    coordinator = OwnCertificate.create(COORDINATOR)
    coordinator.save(made.plane)
    (made.plane / "transport.toml").write_text(f'listen = "127.0.0.1:{made.port}"\n')
    (made.plane / "companies").mkdir()
    for home in without_seeds(run):
        own, transport = OwnCertificate.create(home.name), home / "transport"
        own.save(transport)
        (made.plane / "companies" / f"{home.name}.pem").write_bytes(own.certificate)
        (transport / "coordinator.pem").write_bytes(coordinator.certificate)
        (transport / "transport.toml").write_text(f'address = "127.0.0.1:{through or made.port}"\n')
    try:
        yield made
    finally:
        made.stop()


class Wire:
    """Forwards one port to another, until it is cut: then it drops and refuses connections, or, cut `silently`, keeps
    them and lets nothing through, as a cable that is pulled does."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._cut = False
        self._through = threading.Event()
        self._through.set()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
                if self._cut:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                with suppress(OSError, UnboundLocalError):
                    near.close()
                if self._server.fileno() < 0:
                    return
                continue
            self._open |= {near, far}
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pipe, args=(one, other), daemon=True).start()

    def _pipe(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                self._through.wait()
                other.sendall(data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut(self, *, silently: bool = False) -> None:
        if silently:
            self._through.clear()
            return
        self._cut = True
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def mend(self) -> None:
        self._cut = False
        self._through.set()

    def close(self) -> None:
        self.cut()
        self._through.set()
        self._server.close()


def without_texts(said: str) -> bool:
    """Whether nothing in it looks like a traceback."""
    return re.search(r"Traceback|File \"", said) is None
