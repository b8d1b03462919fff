"""A simulation without the protocol, for studies of utility alone: training and sums as they are, and nothing else.

No keys, masks, signatures, messages, records or ledgers; nothing is accounted at companies. What a company computes
is its own code (`client.training`) with the randomness that its release would have, and what is summed are the same
residues, so the bits are those of the simulation with the protocol. Replies are lost where those settings lose them.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load, save

from ...blocks import digest, merge
from ...blocks.state import State
from ...client.app import release_labels
from ...client.company import Company
from ...client.policy import load_policy
from ...client.training import model_of, train_block
from ...errors import ProtocolError, RunError
from ...privacy.secure_aggregation import Session
from ...protocol.messages import JoinRequest
from ...server.checkpoint import Checkpoint
from ...server.plain_sums import PlainSums
from ...server.run_folder import RunFolder
from ...server.secure_sum import Absences
from ...settings import Plan, read_simulation
from .dropout import PHASES, Losses
from .engines.nodes import Nodes
from .engines.processes import begin_worker

Residues = npt.NDArray[np.uint32]

NO_GUARANTEE = "without the protocol: no guarantee was accounted at companies"
_BEFORE_THE_SUM = ("keys", "train")


@contextmanager
def unprotected(run: RunFolder, workers: int, *, processes: bool = False) -> Iterator[Unprotected]:
    """The cohort of a prepared simulation, `workers` companies at once, a core each: threads, or processes.

    Raises: RunError where a process is ended by the machine.
    """
    pool: Executor
    if processes:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=begin_worker)
    else:
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        with pool:
            yield Unprotected(run, pool, workers)
    except BrokenProcessPool:
        text = "a process with companies was ended by the machine, perhaps for want of memory"
        raise RunError(text) from None


class Unprotected(PlainSums):
    """The companies of `run`, whose updates are summed as they are."""

    def __init__(self, run: RunFolder, pool: Executor, workers: int) -> None:
        settings = read_simulation(run.path)
        self._path, self._pool, self._workers = str(run.path), pool, workers
        self.settings_digest = JoinRequest(run.plan(), _training_of(self._path).shared).digest()
        nodes = Nodes.of(run).names
        self._companies, self._drawn = tuple(sorted(nodes.values())), run.plan().drawn
        self._nodes = {name: node for node, name in nodes.items()}
        self._dropout = settings.companies.dropout
        self._losses = Losses(self._dropout, settings.seed)

    def cohort(self, round_: int) -> tuple[str, ...]:
        return self._companies if self._drawn is None else self._drawn.cohort(round_, self._companies)

    def total(
        self, session: Session, block: int, states: dict[int, State], absences: Absences
    ) -> tuple[Residues, tuple[str, ...]]:
        lost = self._lost(session, block, absences)
        if len(session.cohort) - len(lost) < session.threshold:
            raise ProtocolError("too_few", "fewer companies than the session's threshold are left")
        early = self._dropout.phase in _BEFORE_THE_SUM
        summed = tuple(name for name in session.cohort if not (early and name in lost))
        parts = [summed[i :: self._workers] for i in range(min(self._workers, len(summed)))]
        sent = {b: save(state) for b, state in states.items()}
        asked = [self._pool.submit(_summed, self._path, session, block, sent, names) for names in parts]
        total = sum((each.result() for each in asked), np.zeros(session.length, np.uint32))
        return total & np.uint32((1 << session.bits) - 1), summed

    def _lost(self, session: Session, block: int, absences: Absences) -> set[str]:
        """Whose reply is lost in the phase of the settings."""
        if self._dropout.rate == 0:
            return set()
        phase, group = PHASES[self._dropout.phase], f"round-{session.round}-block-{block}"
        lost = {name for name in session.cohort if self._losses.is_lost(phase, group, self._nodes[name])}
        for name in sorted(lost):
            absences.note(name, phase, "no_reply")
        return lost


@dataclass(frozen=True)
class _Training:
    """What all companies of a run train by."""

    homes: Path
    plan: Plan
    shared: State
    shared_digest: bytes

    def residues(self, session: Session, block: int, states: dict[int, State], name: str) -> Residues:
        home = self.homes / name
        company = Company(home, load_policy(home / "policy.toml"))
        model, data = model_of(self.plan, company.policy.device, block), company.data()
        merge(model, self.shared, *states.values())
        labels = release_labels(
            self.plan, session, session.model_digest, self.shared_digest, data.digest, company.policy
        )
        _, randomness = company.randomness(*labels)
        cohort, policy = len(session.cohort), company.policy
        with company.prefix.before(model, block, data, self.plan) as before:
            return train_block(model, block, data, self.plan, cohort, randomness, policy, before)


@lru_cache(maxsize=1)
def _training_of(path: str) -> _Training:
    run = RunFolder(Path(path))
    shared = Checkpoint.load(run.checkpoints).model.shared
    return _Training(run.companies, run.plan(), shared, digest(shared))


def _summed(
    path: str, session: Session, block: int, sent: dict[int, bytes], names: Sequence[str]
) -> Residues:
    """In the thread or process of a worker: one company after the other, so that no more than the sum and one update
    are in memory."""
    training, states = _training_of(path), {b: load(state) for b, state in sent.items()}
    whole = np.zeros(session.length, np.uint32)
    for name in names:
        whole += training.residues(session, block, states, name)
    return whole
