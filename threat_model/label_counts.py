"""How many examples of a class are in a sum of gradients, by least squares on the classes' mean gradients.

    y = sum over classes k of n_k mu_k + what examples differ + noise,     n = (M M^T)^-1 M y

Rows of M (C, P) are mean clipped gradients mu_k of public examples. Only the C products M y matter, of a release as
of each example, so that many rounds cost C numbers each; those of Gaussian noise with M are N(0, s^2 M M^T).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..blocks.examples import Examples
from ..privacy.dp_sgd import DPSGD
from ..privacy.secure_step import SecureStep
from .block_problem import BlockProblem
from .intervals import Array
from .membership.sums import Participation, gradients_of

_AT_ONCE = 64
_VALUES = 20_000_000  # of gradients held at a time


@dataclass(frozen=True)
class Classes:
    """`means` (C, P) of the classes in `present`; `problem` and `mechanism` are those of the release."""

    problem: BlockProblem
    mechanism: DPSGD | SecureStep
    means: Tensor
    present: tuple[int, ...]

    @classmethod
    def fit(
        cls,
        problem: BlockProblem,
        mechanism: DPSGD | SecureStep,
        public: Examples,
        each: int,
        generator: torch.Generator,
    ) -> Classes:
        """Means of at most `each` public examples a class; classes without any are left out."""
        of_each = problem.values_of(public)["label"]
        labels = [int(label) for label in of_each.unique()]
        means = []
        for label in labels:
            own = public[(of_each == label).nonzero()[: min(each, _at_once(problem)), 0]]
            means.append(gradients_of(problem, mechanism, own, 1, generator).double().mean(0))
        return cls(problem, mechanism, torch.stack(means), tuple(labels))

    @cached_property
    def gram(self) -> Array:
        """M M^T (C, C)."""
        found: Array = (self.means @ self.means.T).numpy()
        return found

    @cached_property
    def _inverse(self) -> Array:
        return np.linalg.pinv(self.gram, rcond=1e-10, hermitian=True).astype(np.float64)

    def products(self, examples: Examples, generator: torch.Generator) -> Array:
        """M g (N, C) of each example's clipped gradient, at one noise draw."""
        step = _at_once(self.problem)
        parts = [torch.zeros(0, len(self.means), dtype=torch.float64)]
        parts += [
            gradients_of(self.problem, self.mechanism, examples[i : i + step], 1, generator).double()
            @ self.means.T
            for i in range(0, len(examples), step)
        ]
        found: Array = torch.cat(parts).numpy()
        return found

    def scores(self, sums: Array, deviation: float) -> Array:
        """Estimated counts (..., C) over the deviation that the noise gives them, of products of sums (..., C).

        `deviation`: of the noise in a coordinate; 0 leaves the counts as they are.
        """
        counts: Array = sums @ self._inverse
        spread = np.sqrt(np.maximum(np.diag(self._inverse), 1e-300))
        return counts / (max(deviation, 1e-12) * spread) if deviation else counts


def summed(products: Array, participation: Participation, rounds: int, rng: np.random.Generator) -> Array:
    """Products (C,) of the sum over rounds and steps of a company's batches, without noise; `products` (N, C)."""
    often = rng.binomial(participation.most * rounds, participation.rate, size=len(products))
    found: Array = often @ products
    return found


def noise(gram: Array, deviation: float, rng: np.random.Generator) -> Array:
    """Products (C,) of noise with the classes' means."""
    values, vectors = np.linalg.eigh(gram)
    root = vectors * np.sqrt(np.maximum(values, 0))
    found: Array = deviation * (root @ rng.standard_normal(len(gram)))
    return found


def _at_once(problem: BlockProblem) -> int:
    return max(1, min(_AT_ONCE, _VALUES // problem.size))
