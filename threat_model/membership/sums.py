"""Likelihood ratio of a candidate's gradient in a sum, under the noise that the mechanism adds.

Who knows all other examples subtracts them; what is left of a release is y = sum_t g_t + noise or noise alone, g_t
the candidate's clipped gradient in step t. The noise is N(0, s^2 I) (or Skellam of the same variance, of 10^5 levels
and more, whose log likelihood ratio is the same to a hundredth), so

    log p(y | g) / p(y | 0) = (<y, g> - |g|^2 / 2) / s^2,

and y matters through its products with gradients alone. The candidate's own noise draws are unknown, and whether its
batch took it: the likelihood is averaged over draws of both (the Neyman-Pearson test of that mixture). Gradients are
taken in the state in which the release began; with several local steps the later ones are nearby.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from ...blocks.examples import Examples
from ...privacy.dp_sgd import DPSGD
from ...privacy.sampling import EpochSampling, PoissonSampling
from ...privacy.secure_step import SecureStep
from ..block_problem import BlockProblem
from ..intervals import Array
from ..likelihood import Clip

_COMBINATIONS = 128  # of draws and batches, over several local steps


@dataclass(frozen=True)
class Participation:
    """How often a release takes an example of the data: `most` times, each with probability `rate`."""

    most: int
    rate: float

    @classmethod
    def of(cls, mechanism: DPSGD | SecureStep) -> Participation:
        """What the batches of this mechanism do."""
        if isinstance(mechanism, SecureStep):
            return cls(1, mechanism.sampling_rate)
        if isinstance(mechanism.sampling, EpochSampling):
            return cls(-(-mechanism.steps // mechanism.sampling.batch_count), 1.0)
        assert isinstance(mechanism.sampling, PoissonSampling)
        return cls(mechanism.steps, mechanism.sampling.rate)

    @property
    def certain(self) -> Participation:
        """The case that differential privacy is about: taken every time."""
        return Participation(self.most, 1.0)


@dataclass(frozen=True)
class Hypotheses:
    """What a member may have added: rows of `weights` (h, m) times its m drawn gradients, equally likely; and with
    probability 1 - `rate` nothing."""

    weights: Array
    rate: float

    @classmethod
    def of(cls, participation: Participation, draws: int, rng: np.random.Generator) -> Hypotheses:
        """Exact for one participation, else so many of the combinations as suffice."""
        if participation.most == 1:
            return cls(np.eye(draws), participation.rate)
        chosen = rng.integers(draws, size=(_COMBINATIONS, participation.most))
        taken = rng.random(chosen.shape) < participation.rate
        weights = (np.eye(draws)[chosen] * taken[..., None]).sum(1)
        return cls(weights, 1.0)


def log_ratio(products: Array, gram: Array, deviation: float, hypotheses: Hypotheses) -> Array:
    """log p(y | member) / p(y | not) of releases y: (..., m) products <y, g_i>, gram (..., m, m) of the g_i -> (...).

    `deviation`: of the noise in one coordinate.
    """
    w = hypotheses.weights
    norms = np.einsum("hi,...ij,hj->...h", w, gram, w)
    each = (products @ w.T - norms / 2) / deviation**2
    found: Array = logsumexp(each, axis=-1) - np.log(len(w))
    if hypotheses.rate < 1:
        found = np.logaddexp(np.log1p(-hypotheses.rate), np.log(hypotheses.rate) + found)
    return found


def gradients_of(
    problem: BlockProblem,
    mechanism: DPSGD | SecureStep,
    candidates: Examples,
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    """Gradients (n draws, P) float32 of n examples, each with noise draws of its own, clipped as the mechanism does;
    a moving clip is where it starts."""
    values = {name: v.repeat_interleave(draws, 0) for name, v in problem.values_of(candidates).items()}
    drawn = problem.gradient(problem.sample(values, generator), fast=True)
    return Clip.of(mechanism)(problem, drawn)
