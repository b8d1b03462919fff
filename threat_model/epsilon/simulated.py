"""Two mechanisms that are exactly mu-GDP for every canary: what a certificate must hold for, both of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Coins = npt.NDArray[np.bool_]


def independent(inside: Coins, mu: float, generator: np.random.Generator) -> Array:
    """Scores (m,) with mean mu inside and 0 outside, each with noise of its own."""
    scores: Array = mu * inside + generator.standard_normal(len(inside))
    return scores


def one_latent(inside: Coins, mu: float, generator: np.random.Generator) -> Array:
    """Scores (m,) of which one public number, shared by all, says how much each of them tells.

    For N(-mu/2, 1) against N(mu/2, 1), y's distance from 0 has one law under both, and given it, y's sign tells them
    apart with odds of exp(mu |y|). Here |y| is drawn once and released, and each canary gets a sign of its own: one
    canary and the latent together are exactly the Gaussian pair, but all are told apart well, or all badly.
    """
    distance = abs(mu / 2 + generator.standard_normal())
    right = generator.random(len(inside)) < 1 / (1 + np.exp(-mu * distance))
    scores: Array = mu / 2 + distance * np.where(right == inside, 1.0, -1.0)
    return scores
