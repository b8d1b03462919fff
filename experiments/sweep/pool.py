"""A process for each job, so many at a time, each with a pipe of its own: one that is killed takes nothing with it.

A process of its own tells a cell's peak memory, and gives all of it back. It ends when this process does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from ...errors import FedblocksError
from ...glibc_malloc import keep_freed_memory
from .cell import Folders, run_cell
from .grid import Cell
from .shared import start
from .table import Row

_TICK = 0.5  # seconds between two looks at jobs that say nothing
_END = 10.0  # seconds that an interrupted job has
# How long a job takes beside a run of the same grid, until one of its kind has ended.
_GUESS = {"shared": 0.3, "run": 1.0, "audited": 2.5, "pooled": 0.8, "alone": 0.8}


@dataclass(frozen=True)
class Job:
    """A cell to run in `run`, or without that what it starts from to be made in `started`.

    `after`: the name of the job that makes what it starts from.
    """

    name: str
    cell: Cell
    started: Path
    run: Path | None
    audit: bool
    after: str | None = None
    track: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        if self.run is None:
            return "shared"
        return "audited" if self.audit and self.cell.kind == "run" else self.cell.kind


@dataclass(frozen=True)
class Ended:
    """`row`: of a cell that is done; else `reason` in one line, and `trace` where the program is at fault."""

    job: Job
    seconds: float
    row: Row | None = None
    reason: str = ""
    trace: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.reason)


@dataclass
class _Running:
    job: Job
    process: SpawnProcess
    news: Connection
    began: float
    share: float = 0.0


class Pool:
    """Runs jobs, those that others wait for first."""

    def __init__(self, jobs: Sequence[Job], processes: int) -> None:
        self._waiting, self._processes = list(jobs), processes
        self._running: list[_Running] = []
        self._all, self._ended = list(jobs), list[Ended]()
        self._context = multiprocessing.get_context("spawn")  # threads have run here: a fork may hang

    def run(self) -> Generator[Ended | None]:
        """Each job as it ends, and none in between for progress; leaving the iterator ends the jobs at work."""
        try:
            while self._waiting or self._running:
                self._start()
                ready = wait([each.news for each in self._running], timeout=_TICK)
                for each in [r for r in self._running if r.news in ready]:
                    ended = self._heard(each)
                    if ended is not None:
                        yield from self._closed(each, ended)
                yield None
        finally:
            for each in self._running:
                each.process.terminate()
            for each in self._running:
                each.process.join(_END)
                if each.process.is_alive():
                    each.process.kill()
                    each.process.join()

    def share(self, done: float) -> float:
        """The finished share of the whole, of which `done` was finished before."""
        whole = sum(self._cost(job) for job in self._all)
        over = sum(self._cost(e.job) for e in self._ended)
        over += sum(self._cost(r.job) * r.share for r in self._running)
        return done + (1 - done) * (over / whole if whole else 1.0)

    def seconds_left(self) -> float | None:
        """Of all jobs, from those that have ended; none before the first has."""
        if not any(not e.failed for e in self._ended):
            return None
        left = sum(self._cost(job) for job in self._waiting)
        left += sum(self._cost(r.job) * (1 - r.share) for r in self._running)
        return left / self._processes

    def _cost(self, job: Job) -> float:
        """Seconds: the mean of its kind; before one has ended, by what others took."""
        own = [e.seconds for e in self._ended if e.job.kind == job.kind and not e.failed]
        if own:
            return sum(own) / len(own)
        known = [e for e in self._ended if not e.failed]
        unit = sum(e.seconds for e in known) / sum(_GUESS[e.job.kind] for e in known) if known else 1.0
        return unit * _GUESS[job.kind]

    def _start(self) -> None:
        blocked = {job.name for job in self._waiting} | {r.job.name for r in self._running}
        for job in [j for j in self._waiting if j.after not in blocked]:
            if len(self._running) >= self._processes:
                return
            self._waiting.remove(job)
            here, there = self._context.Pipe(duplex=False)
            process = self._context.Process(target=_work, args=(job, there), daemon=True)
            process.start()
            there.close()
            self._running.append(_Running(job, process, here, time.monotonic()))

    def _heard(self, each: _Running) -> Ended | None:
        try:
            said = each.news.recv()
        except EOFError:
            each.process.join()
            code = each.process.exitcode
            why = f"its process was ended by the machine ({_signal(code)}), perhaps for want of memory"
            return Ended(each.job, time.monotonic() - each.began, reason=why)
        if isinstance(said, float):
            each.share = said
            return None
        row, reason, trace = said
        return Ended(each.job, time.monotonic() - each.began, row, reason, trace)

    def _closed(self, each: _Running, ended: Ended) -> Iterator[Ended]:
        """What has ended, and those that cannot begin without it."""
        each.process.join(_END)
        each.news.close()
        self._running.remove(each)
        self._ended.append(ended)
        yield ended
        if ended.failed and each.job.run is None:
            for job in [j for j in self._waiting if j.after == each.job.name]:
                self._waiting.remove(job)
                self._ended.append(Ended(job, 0.0, reason=ended.reason, trace=ended.trace))
                yield self._ended[-1]


def _signal(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _work(job: Job, news: Connection) -> None:
    """In the job's own process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process, whoever was interrupted
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    told = [0.0]

    def tell(share: float) -> None:
        if share - told[0] >= 0.01:
            told[0] = share
            news.send(share)

    try:
        if job.run is None:
            steps = job.cell.settings.pretraining.total_steps(job.cell.settings.model.blocks)
            start(job.started, job.cell, lambda step: tell(step / max(steps, 1)))
            news.send((None, "", ""))
        else:
            folders = Folders(started=job.started, run=job.run)
            news.send((run_cell(job.cell, folders, audit=job.audit, track=job.track, on_share=tell), "", ""))
    except Exception as error:
        text = " ".join(str(error).split())[:500]
        ours = isinstance(error, FedblocksError | OSError)
        reason = text if ours and text else f"{type(error).__name__}: {text}"
        news.send((None, reason, "" if ours else traceback.format_exc()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
