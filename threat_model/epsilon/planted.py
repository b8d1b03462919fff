"""A run's own releases with canaries in them: what the certificate and the estimate of epsilon are computed from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ...client.company import Company
from ...client.policy import load_policy
from ...privacy.dp_sgd import DPSGD
from ...privacy.randomness import Randomness
from ...privacy.sampling import EpochSampling, PoissonSampling
from ...privacy.secure_step import SecureStep
from ...protocol.release import block_size
from ..ceilings import event_of_release
from ..releases import clip_of, deviation
from ..subject import Subject
from ..tradeoff import Claim, without_sampling
from .canaries import Canaries, release
from .certificate import ScoreLaw

Array = npt.NDArray[np.float64]
Coins = npt.NDArray[np.bool_]
MOST_CANARIES = 10_000
LEVEL = 0.05
"""Of all tests of an audit together: each gets an equal part (Bonferroni)."""


@dataclass(frozen=True)
class Planted:
    """One block of a run under audit. `name`: of the attack; others' experiments have other randomness."""

    subject: Subject
    block: int
    name: str

    @cached_property
    def size(self) -> int:
        return block_size(self.subject.model, self.block, self.subject.plan.training)

    @cached_property
    def canaries(self) -> Canaries:
        return Canaries(self.size, min(MOST_CANARIES, self.size), self.subject.seed)

    @cached_property
    def mechanism(self) -> DPSGD | SecureStep:
        return self.subject.mechanism(self.block)

    @cached_property
    def companies(self) -> tuple[str, ...]:
        return self.subject.cohort(self.block)

    @property
    def known(self) -> Claim:
        """Of one release, the example being known to take part in every step."""
        event = event_of_release(self.subject, self.block)
        return Claim(without_sampling(event), self.subject.plan.delta)

    def sampled(self, releases: int) -> Claim:
        """Of so many releases, batches drawn as they are accounted."""
        return Claim(event_of_release(self.subject, self.block).times(releases), self.subject.plan.delta)

    def law(self, releases: int = 1, *, sampled: bool = False) -> ScoreLaw:
        """How scores of canaries fall if the mechanism does what it claims."""
        own = self.mechanism
        if isinstance(own, SecureStep):
            shares, steps = own.noise.companies - own.noise.tolerated, 1
            rate = own.sampling_rate if sampled else 1.0
        else:
            shares, steps, rate = 1, own.steps, 1.0
            if isinstance(own.sampling, EpochSampling):
                rate = 1 / own.sampling.batch_count
            elif sampled and isinstance(own.sampling, PoissonSampling):
                rate = own.sampling.rate
        noise = deviation(own, shares) / clip_of(own) / math.sqrt(steps)
        return ScoreLaw(noise, steps * releases, rate)

    def coins(self, count: int, *names: str | int) -> Coins:
        """Fair, fresh for every name."""
        label = "/".join(map(str, names))
        return Randomness.from_seed(self.subject.seed, self.name, "coins", self.block, label).bernoulli(
            count, 0.5
        )

    def scores(
        self,
        company: str,
        inside: Coins,
        *names: str | int,
        sampled: bool = False,
        noise: float = 1.0,
    ) -> Array:
        """Scores (m,) in clips from one release of this company, with what its own code draws for `names`."""
        home = self.subject.run.companies / company
        own = Company(home, load_policy(home / "policy.toml"))
        label = "/".join(map(str, names))
        vector = release(
            self.mechanism,
            self.canaries,
            inside,
            own.randomness(self.name, self.subject.seed, self.block, label)[1],
            Randomness.from_seed(self.subject.seed, self.name, "others' shares", self.block, company, label),
            sampled=sampled,
            noise=noise,
        )
        return self.canaries.scores(vector)
