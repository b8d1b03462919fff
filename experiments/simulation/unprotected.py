"""A simulation without the protocol, for studies of utility alone: training and sums as they are, and nothing else.

No keys, masks, signatures, messages, records or ledgers; nothing is accounted at companies. What a company computes is
its own code (`client.training`) with the randomness that its release would have, and what is summed are the same
residues, so the bits are those of the simulation with the protocol. Replies are lost where those settings lose them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from ...blocks import digest, merge
from ...blocks.state import State
from ...client.app import release_labels
from ...client.company import Company
from ...client.policy import load_policy
from ...client.training import model_of, train_block
from ...errors import ProtocolError
from ...privacy.secure_aggregation import Session
from ...protocol.messages import JoinRequest
from ...server.checkpoint import Checkpoint
from ...server.plain_sums import PlainSums
from ...server.run_folder import RunFolder
from ...server.secure_sum import Absences
from ...settings import read_simulation
from .dropout import PHASES, LossyGrid

Residues = npt.NDArray[np.uint32]

NO_GUARANTEE = "without the protocol: no guarantee was accounted at companies"
_BEFORE_THE_SUM = ("keys", "train")


@contextmanager
def unprotected(run: RunFolder, workers: int) -> Iterator[Unprotected]:
    """The cohort of a prepared simulation, `workers` companies at once, a core each."""
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield Unprotected(run, pool, workers)


class Unprotected(PlainSums):
    """The companies of `run`, whose updates are summed in this process."""

    def __init__(self, run: RunFolder, pool: ThreadPoolExecutor, workers: int) -> None:
        settings = read_simulation(run.path)
        self._run, self._pool, self._workers = run, pool, workers
        self._plan, self._shared = run.plan(), Checkpoint.load(run.checkpoints).model.shared
        self._shared_digest = digest(self._shared)
        self.settings_digest = JoinRequest(self._plan, self._shared).digest()
        self.companies = tuple(sorted(home.name for home in run.homes()))
        self._dropout = settings.companies.dropout
        self._losses = LossyGrid(self, self._dropout, settings.seed)
        # As a grid numbers its nodes: by number where the names have one, else by name.
        count = len(self.companies)
        numbered = {f"company-{i}": i + 1 for i in range(count)}
        named = {name: i + 1 for i, name in enumerate(self.companies)}
        self._nodes = numbered if set(numbered) == set(self.companies) else named

    def total(
        self, session: Session, block: int, states: dict[int, State], absences: Absences
    ) -> tuple[Residues, tuple[str, ...]]:
        lost = self._lost(session, block, absences)
        if len(session.cohort) - len(lost) < session.threshold:
            raise ProtocolError("too_few", "fewer companies than the session's threshold are left")
        early = self._dropout.phase in _BEFORE_THE_SUM
        summed = tuple(name for name in session.cohort if not (early and name in lost))
        parts = [summed[i :: self._workers] for i in range(min(self._workers, len(summed)))]
        sums = self._pool.map(lambda names: self._sum(session, block, states, names), parts)
        return _mod(sum(sums, np.zeros(session.length, np.uint32)), session.bits), summed

    def _lost(self, session: Session, block: int, absences: Absences) -> set[str]:
        """Whose reply is lost in the phase of the settings."""
        if self._dropout.rate == 0:
            return set()
        phase, group = PHASES[self._dropout.phase], f"round-{session.round}-block-{block}"
        lost = {name for name in session.cohort if self._losses.is_lost(phase, group, self._nodes[name])}
        for name in sorted(lost):
            absences.note(name, phase, "no_reply")
        return lost

    def _sum(self, session: Session, block: int, states: dict[int, State], names: Sequence[str]) -> Residues:
        """One company after the other, so that no more than the sum and one update are in memory."""
        whole = np.zeros(session.length, np.uint32)
        for name in names:
            whole += self._residues(session, block, states, name)
        return whole

    def _residues(self, session: Session, block: int, states: dict[int, State], name: str) -> Residues:
        home = self._run.companies / name
        company = Company(home, load_policy(home / "policy.toml"))
        model, data = model_of(self._plan, company.policy.device, block), company.data()
        merge(model, self._shared, *states.values())
        labels = release_labels(
            self._plan, session, session.model_digest, self._shared_digest, data.digest, company.policy
        )
        _, randomness = company.randomness(*labels)
        return train_block(model, block, data, self._plan, len(session.cohort), randomness, company.policy)


def _mod(total: Residues, bits: int) -> Residues:
    return total & np.uint32((1 << bits) - 1)
