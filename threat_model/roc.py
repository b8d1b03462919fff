"""How well scores tell members from non-members: area under the curve, and hits at a low rate of false alarms."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

from ..errors import InputError
from .intervals import LEVEL, Array, Estimate, proportion

LEAST_NON_MEMBERS = {0.01: 300, 0.001: 3000}
"""Rate of false alarms -> non-members from which on a threshold at that rate is more than one case's luck."""


def auc(members: Array, non_members: Array, level: float = LEVEL) -> Estimate:
    """The chance that a member scores above a non-member, ties half, with DeLong's interval (1988).

    Where scores part almost wholly DeLong's variance is zero, which says too much: it is at least Hanley and McNeil's
    (1982) at an area moved towards one half by half a pair.

    Raises:
        InputError: there are fewer than two of either, or a score is not a number.
    """
    m, n = len(members), len(non_members)
    if min(m, n) < 2 or np.isnan(members).any() or np.isnan(non_members).any():
        raise InputError("scores", min(m, n), "expected numbers, of at least two members and two non-members")
    both = np.concatenate([members, non_members])
    ranks = stats.rankdata(both)
    above_m = (ranks[:m] - stats.rankdata(members)) / n
    above_n = 1 - (ranks[m:] - stats.rankdata(non_members)) / m
    value = float(above_m.mean())
    delong = above_m.var(ddof=1) / m + above_n.var(ddof=1) / n
    moved = (value * m * n + 0.5) / (m * n + 1)
    pairs = (m + n) / 2 - 1
    hanley = (
        moved * (1 - moved) * (1 + pairs * (1 - moved) / (2 - moved) + pairs * moved / (1 + moved)) / (m * n)
    )
    half = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt(max(delong, hanley))
    return Estimate(
        value=value, low=max(0.0, value - half), high=min(1.0, value + half), n=m + n, method="delong", level=level
    )  # fmt: skip


def hits_at(members: Array, non_members: Array, false_alarms: float) -> Estimate:
    """The share of members above a threshold that this share of the non-members pass.

    Raises:
        InputError: there are too few non-members for that.
    """
    least = LEAST_NON_MEMBERS.get(false_alarms, math.ceil(3 / false_alarms))
    if len(non_members) < least:
        rule = f"at a rate of {false_alarms:g} at least {least:,} are needed"
        raise InputError("non-members", len(non_members), rule)
    threshold = np.sort(non_members)[-(math.floor(false_alarms * len(non_members)) + 1)]
    return proportion(int((members > threshold).sum()), len(members))


def gaussian_auc(mu: float, rate: float = 1.0) -> float:
    """The area under the curve of N(mu, 1) against N(0, 1): no attack on a mu-GDP release has more.

    `rate`: with what probability a member is in the release at all; else it leaves what a non-member leaves.
    """
    return 0.5 + rate * (float(stats.norm.cdf(mu / math.sqrt(2))) - 0.5)


def pooled_auc(distances: npt.NDArray[np.float64]) -> float:
    """The area of log likelihood ratios of candidates whose known gradients are `distances` (n,) deviations long.

    Candidate i's is N(-+d_i^2/2, d_i^2), so a member i beats another j with probability Phi(sqrt(d_i^2 + d_j^2) / 2).
    """
    squares = distances**2
    return float(stats.norm.cdf(np.sqrt(squares[:, None] + squares[None, :]) / 2).mean())


def log_mean_exp(values: npt.NDArray[np.float64]) -> Array:
    """log mean exp over the last axis."""
    top = values.max(-1, keepdims=True)
    found: Array = np.log(np.exp(values - top).mean(-1)) + top[..., 0]
    return found
