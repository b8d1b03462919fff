"""The likelihood ratio test at any noise, sampling and number of rounds, from gradients that were drawn.

A release matters through its products with the candidate's gradients, and those of Gaussian noise with them are
N(0, s^2 G), G their Gram matrix: so a release costs m numbers, not P.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..intervals import Array
from ..roc import auc
from .sums import Hypotheses, Participation, log_ratio

_ROUNDS_AT_ONCE = 16


@dataclass(frozen=True)
class Candidates:
    """Gram matrices (n, t + m, t + m) of n candidates' clipped gradients: the first t are what happens, the other m
    what the attacker draws."""

    gram: Array
    truths: int

    @cached_property
    def _roots(self) -> Array:
        """R with R R^T = G (..., t + m, t + m)."""
        values, vectors = np.linalg.eigh(self.gram)
        found: Array = vectors * np.sqrt(np.maximum(values, 0))[..., None, :]
        return found

    @property
    def drawn(self) -> Array:
        """The attacker's part of the Gram matrices, (n, m, m)."""
        return self.gram[:, self.truths :, self.truths :]

    def noise(self, deviation: float, rng: np.random.Generator, releases: int = 1) -> Array:
        """Products of noise with all gradients: (releases, n, t + m)."""
        normal = rng.standard_normal((releases, *self.gram.shape[:2]))
        found: Array = deviation * np.einsum("nij,rnj->rni", self._roots, normal)
        return found

    def scores(
        self,
        members: npt.NDArray[np.bool_],
        deviation: float,
        participation: Participation,
        rounds: int,
        rng: np.random.Generator,
    ) -> Array:
        """Log likelihood ratios (n,) over `rounds` releases each; `members` (n,): whose gradients are in them."""
        t = self.truths
        hypotheses = Hypotheses.of(participation, self.gram.shape[1] - t, rng)
        total = np.zeros(len(self.gram))
        for start in range(0, rounds, _ROUNDS_AT_ONCE):
            now = min(_ROUNDS_AT_ONCE, rounds - start)
            shape = (now, len(self.gram), participation.most)
            taken = (rng.random(shape) < participation.rate) & members[None, :, None]
            counts = (np.eye(t)[rng.integers(t, size=shape)] * taken[..., None]).sum(2)  # (rounds, n, t)
            added = np.einsum("rnt,ntj->rnj", counts, self.gram[:, :t, t:])
            products = added + self.noise(deviation, rng, now)[..., t:]
            total += log_ratio(products, self.drawn, deviation, hypotheses).sum(0)
        return total

    def auc(self, deviation: float, participation: Participation, rounds: int, seed: int) -> float:
        """The area under the ROC curve that the test is expected to have, every candidate once in and once out."""
        rng = np.random.default_rng(seed)
        everyone = np.ones(len(self.gram), dtype=bool)
        members, others = (
            self.scores(side, deviation, participation, rounds, rng) for side in (everyone, ~everyone)
        )
        return auc(members, others).value
