"""The attacks of an audit, a job each: which there are, how long each may take, and running them side by side.

A job is one attack on one block (or on all). Its experiments are seeded by their names, so results do not depend on
which process runs a job, nor on how many there are; only what the clock cuts short does.
"""

from __future__ import annotations

import logging
import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import RunError
from ..glibc_malloc import keep_freed_memory
from ..server.run_folder import RunFolder
from .adversaries import Adversary
from .attacks import Attack, attack, attacks
from .clock import Clock
from .exhibits import Kept
from .results import Result
from .subject import Subject

log = logging.getLogger("fedblocks.audit")
Found = list[Result | Kept]
_BREAKDOWNS = (
    ArithmeticError,
    torch.linalg.LinAlgError,  # type: ignore[attr-defined]
    np.linalg.LinAlgError,
    torch.OutOfMemoryError,
)
_OF_EXAMPLES = ("reconstruction", "membership")
_OF_ANY_UNIT = ("conformance", "released-sums")  # of the company's own step and sums, whatever their unit
_WORTH_IT = 1.5  # times the share that was too short
_HALF = 0.5  # done, of a job that is run again


@dataclass(frozen=True, order=True)
class Job:
    """`block` none: all of the audited blocks at once."""

    attack: str
    block: int | None

    @property
    def name(self) -> str:
        return self.attack if self.block is None else f"{self.attack}-block-{self.block}"

    @property
    def weight(self) -> float:
        return attack(self.attack).weight


def jobs_of(subject: Subject, adversaries: Sequence[Adversary]) -> tuple[list[Job], list[Result]]:
    """What can be mounted by one of these adversaries, and for the rest why it cannot."""
    jobs: list[Job] = []
    refused: list[Result] = []
    names = [each.name for each in adversaries]
    for each in attacks():
        able = [name for name in names if name in each.adversaries]
        if not able:
            continue
        for block in subject.blocks if each.by_block else (None,):
            why = _of_groups(each, subject) or each.applies(
                subject if block is None else replace(subject, blocks=(block,))
            )
            if why is None:
                jobs.append(Job(each.name, block))
            else:
                refused.append(_not_applicable(each, able[0], block, why))
    return jobs, refused


def _of_groups(each: Attack, subject: Subject) -> str | None:
    """Attacks, and most checks, mount releases of single examples; those of groups are others."""
    if subject.plan.training.unit is None or each.name in _OF_ANY_UNIT:
        return None
    return f"the plan's unit of privacy is {subject.plan.training.unit}; attacks are mounted on single examples alone"


def _not_applicable(each: Attack, adversary: str, block: int | None, why: str) -> Result:
    return Result(
        attack=each.name, adversary=adversary, view="run", statement=each.statement, statistic="applies",
        unit="number", outcome="not applicable", reason=why, block=block,
    )  # fmt: skip


def run_job(job: Job, subject: Subject, names: Sequence[str]) -> Found:
    """One job in this process; of its results those of the adversaries in `names`."""
    blocks = subject.blocks if job.block is None else (job.block,)
    found: Found = []
    try:
        for each in attack(job.attack).run(replace(subject, blocks=blocks)):
            if not isinstance(each, Result):
                found.append(each)
            elif each.adversary in names:
                found.append(_as_promised(each, subject))
    except _BREAKDOWNS as error:
        found.append(_broken_down(attack(job.attack), job, names, error))
    return found


def _broken_down(each: Attack, job: Job, names: Sequence[str], error: Exception) -> Result:
    """What numbers did to one attack costs neither the others nor an earlier audit; nothing is claimed of its rest.

    The error's text is left out: it may name a value of an example.
    """
    log.error("%s broke down", job.name, exc_info=error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    why = f"the attack broke down: {type(error).__name__} in {Path(place.filename).name}, line {place.lineno}"
    return Result(
        attack=each.name, adversary=next(n for n in names if n in each.adversaries), view="run",
        statement=each.statement, statistic="ended", unit="number", outcome="inconclusive", reason=why,
        block=job.block,
    )  # fmt: skip


def _as_promised(result: Result, subject: Subject) -> Result:
    """Of shares of one noise nothing is promised against more colluders than the plan names: what these tell from a
    single company's share is for comparison."""
    more = result.adversary == "colluding-coordinator" and result.statement in _OF_EXAMPLES
    if not (subject.plan.secure_step and more) or result.outcome == "refuted":
        return result
    most, cohort = subject.plan.colluders, len(subject.cohort(result.block or 0))
    if most >= cohort - 1:
        return result
    why = f"shares of noise are promised to suffice against {most} colluding companies, not {cohort - 1}"
    return result.model_copy(
        update={"protected": False, "reason": "; ".join(each for each in (result.reason, why) if each)}
    )


@dataclass
class Progress:
    """The finished share of all jobs, by weight."""

    jobs: Sequence[Job]
    tell: Callable[[float, str], None]

    def __post_init__(self) -> None:
        self._shares = dict.fromkeys((job.name for job in self.jobs), 0.0)
        self._weights = {job.name: job.weight for job in self.jobs}

    def update(self, name: str, share: float, note: str) -> None:
        self._shares[name] = max(self._shares[name], share)  # a job that is run again does not fall back
        whole = sum(self._weights.values())
        done = sum(self._weights[n] * s for n, s in self._shares.items())
        self.tell(done / whole if whole else 1.0, note)


def run_jobs(
    jobs: Sequence[Job],
    subject: Subject,
    names: Sequence[str],
    *,
    seconds: float,
    on_progress: Callable[[float, str], None],
) -> Iterator[tuple[Job, Found]]:
    """Each job's findings as soon as it has ended: those that are sure to end first, of these the heaviest first.

    `seconds`: for all jobs together; what the early ones leave over goes to the later ones, which so need not be cut
    short. A job whose share was too short is run again at the end, and its findings come again, if more is left for
    it then.
    """
    queue = _Queue(jobs, Clock(seconds), subject.workers if len(jobs) > 1 else 1)
    progress = Progress(jobs, on_progress)
    if queue.workers > 1:
        yield from _side_by_side(queue, subject, names, progress)
        return
    while (given := queue.next()) is not None:
        job, share = given
        clock = Clock(share, lambda s, note, name=job.name: progress.update(name, s, note))  # type: ignore[misc]
        found = run_job(job, subject.within(clock), names)
        again = queue.ended(job, share, cut_short=clock.cut_short)
        yield job, found
        progress.update(job.name, _HALF if again else 1.0, job.name)


class _Queue:
    """Which job is next, and its seconds: its part by weight of what is left of all workers' time."""

    def __init__(self, jobs: Sequence[Job], whole: Clock, workers: int) -> None:
        self.workers, self._whole = min(workers, max(len(jobs), 1)), whole
        self._waiting = sorted(jobs, key=lambda job: (attack(job.attack).open_ended, -job.weight, job))
        self._short: dict[Job, float] = {}  # and the share that was too short
        self._again: list[Job] = []

    def next(self) -> tuple[Job, float] | None:
        if not self._waiting:
            self._waiting, self._again = self._again, []
        while self._waiting:
            rest = sum(job.weight for job in self._waiting)
            job = self._waiting.pop(0)
            share = min(self._whole.left, self._whole.left * self.workers * job.weight / rest)
            if share >= _WORTH_IT * self._short.get(job, 0.0):
                return job, share
        return None

    def ended(self, job: Job, share: float, *, cut_short: bool) -> bool:
        """Whether it is to be run again."""
        again = cut_short and job not in self._short
        if again:
            self._short[job] = share
            self._again.append(job)
        return again


def _side_by_side(
    queue: _Queue, subject: Subject, names: Sequence[str], progress: Progress
) -> Iterator[tuple[Job, Found]]:
    context = multiprocessing.get_context(
        "spawn"
    )  # a fork of a process whose OpenMP threads have run may hang
    news, stop = context.SimpleQueue(), context.Event()
    given = (subject.run.path, subject.seed, subject.blocks, news, stop)
    with ProcessPoolExecutor(queue.workers, context, initializer=_prepare, initargs=given) as pool:
        running: dict[Future[tuple[Found, bool]], tuple[Job, float]] = {}
        try:
            while True:
                while len(running) < queue.workers and (each := queue.next()) is not None:
                    running[pool.submit(_run, each[0], tuple(names), each[1])] = each
                if not running:
                    break
                done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                while not news.empty():
                    progress.update(*news.get())
                for future in done:
                    job, share = running.pop(future)
                    try:
                        found, cut_short = future.result()
                    except BrokenProcessPool:
                        why = (
                            "a process was ended by the machine, perhaps for want of memory; try --workers 1"
                        )
                        raise RunError(f"{subject.run.path}: {why}") from None
                    again = queue.ended(job, share, cut_short=cut_short)
                    yield job, found
                    progress.update(job.name, _HALF if again else 1.0, job.name)
        finally:
            stop.set()  # the jobs at work end at their next step, and the pool can close


_subject: Subject | None = None
_news: Any = None
_stop: Any = None


def _prepare(run: Path, seed: int, blocks: tuple[int, ...], news: Any, stop: Any) -> None:
    global _subject, _news, _stop
    torch.set_num_threads(1)  # one core each: the matrices are small
    keep_freed_memory()
    _news, _stop = news, stop
    _subject = replace(Subject.of(RunFolder.existing(run), seed=seed), blocks=blocks, workers=1)


def _run(job: Job, names: tuple[str, ...], seconds: float) -> tuple[Found, bool]:
    assert _subject is not None

    def tell(share: float, note: str) -> None:
        if _stop.is_set():
            raise KeyboardInterrupt
        _news.put((job.name, share, note))

    clock = Clock(seconds, tell)
    return run_job(job, _subject.within(clock), names), clock.cut_short
