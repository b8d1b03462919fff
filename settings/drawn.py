"""Cohorts that are drawn anew for every round, from more companies than take part in one.

Whom a round has follows from the seed, the round and the companies' names alone. So a resumed run has the same
cohorts, each company can tell in advance the rounds for which it is charged, and it takes part in no other cohort.
The seed is no secret: whoever knows it knows the cohorts, so no privacy is gained from the draw, and none is claimed.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

import numpy as np
from pydantic import Field

from ..blocks.settings import Part
from .privacy import MOST_COMPANIES

_COHORT = 0x636F686F7274  # keeps the stream apart from others with the same seed


class DrawnCohorts(Part):
    """`per_round` of so many `companies`, uniformly without replacement."""

    seed: int = Field(ge=0, lt=2**57)
    companies: int = Field(ge=3, le=MOST_COMPANIES)
    per_round: int = Field(ge=3, le=MOST_COMPANIES)

    def cohort(self, round_: int, names: Collection[str]) -> tuple[str, ...]:
        """The round's companies in order; `names`: of all of them, in any order."""
        every = sorted(names)
        return tuple(every[place] for place in self.places(round_))

    def places(self, round_: int) -> list[int]:
        """The round's companies, as places in the order of all names."""
        generator = np.random.default_rng([self.seed, _COHORT, round_])
        drawn = generator.choice(self.companies, self.per_round, replace=False, shuffle=False)
        return sorted(int(place) for place in drawn)

    def rounds_of(self, company: str, names: Collection[str], rounds: int) -> int:
        """In how many of the first `rounds` rounds the company is drawn."""
        return _counts(self, rounds)[sorted(names).index(company)]

    def most_rounds(self, rounds: int) -> int:
        """In how many of the first `rounds` rounds any one company is drawn."""
        return max(_counts(self, rounds))


@lru_cache(maxsize=8)
def _counts(drawn: DrawnCohorts, rounds: int) -> tuple[int, ...]:
    counts = np.zeros(drawn.companies, dtype=np.int64)  # (companies,)
    for round_ in range(1, rounds + 1):
        counts[drawn.places(round_)] += 1
    return tuple(int(count) for count in counts)
