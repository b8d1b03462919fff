"""Scores of members and of others: the area under their ROC curve, and what the mechanism's noise allows.

Intervals of the area are DeLong's (DeLong, DeLong & Clarke-Pearson, Biometrics 1988, equations 4 to 6), on the scale
of log odds, which keeps them within [0, 1]. They say nothing where the scores do not overlap; there, and of few cases,
the interval is exact: that of independent pairs of a member and another.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

from ...errors import InputError
from ..intervals import LEVEL, Array, Estimate, proportion

LEAST_OTHERS = {0.01: 100, 0.001: 3000}
"""Non-members that a rate of false alarms needs: with fewer, it is the rank of one or two of them."""
_FEW = 10


def area(members: Array, others: Array, *, level: float = LEVEL) -> Estimate:
    """P(a member scores above another example), ties counting half, from scores (n,) and (m,).

    Raises:
        InputError: there is no member, no other, or a score is not a number.
    """
    n, m = len(members), len(others)
    if n == 0 or m == 0:
        raise InputError("scores", min(n, m), f"expected members and others, got {n} and {m}")
    if np.isnan(members).any() or np.isnan(others).any():
        raise InputError("scores", float("nan"), "expected numbers")
    both = stats.rankdata(np.concatenate([members, others]))
    # Each score's share of the other side that it is on the right side of (the placements).
    of_members = (both[:n] - stats.rankdata(members)) / m
    of_others = 1 - (both[n:] - stats.rankdata(others)) / n
    value = float(of_members.mean())
    if min(n, m) >= _FEW:
        variance = float(of_members.var(ddof=1) / n + of_others.var(ddof=1) / m)
        if variance > 0 and 0 < value < 1:
            odds, spread = math.log(value / (1 - value)), math.sqrt(variance) / (value * (1 - value))
            half = float(stats.norm.ppf((1 + level) / 2)) * spread
            low, high = (1 / (1 + math.exp(-(odds + side))) for side in (-half, half))
            return Estimate(value=value, low=low, high=high, n=n + m, method="delong", level=level)
    pairs = min(n, m)
    low = proportion(math.floor(value * pairs), pairs, level).low
    high = proportion(math.ceil(value * pairs), pairs, level).high
    return Estimate(
        value=value, low=min(low, value), high=max(high, value), n=n + m, method="exact", level=level
    )


def found_at(members: Array, threshold: float, *, false_alarms: float, others: int) -> Estimate:
    """The share of members above a threshold that was set without these scores; `others`: how many non-members tell
    that it has this rate of false alarms.

    Raises:
        InputError: those are too few for the rate.
    """
    least = LEAST_OTHERS[false_alarms]
    if others < least:
        raise InputError("others", others, f"expected at least {least} for false alarms of {false_alarms:.1%}")
    return proportion(int((members > threshold).sum()), len(members))


def refusal(false_alarms: float, others: int) -> str:
    """Why the members found at this rate are not given; empty where they can be."""
    least = LEAST_OTHERS[false_alarms]
    if others >= least:
        return ""
    return f"at {false_alarms:.1%} false alarms nothing is said: that takes {least:,} non-members, here are {others:,}"


def gaussian_area(mu: float, rate: float = 1.0) -> float:
    """Area under the ROC of N(0, 1) against N(mu, 1), seen with probability `rate` and else as N(0, 1).

    Of a mechanism that is mu-Gaussian DP no test has a larger one (Dong, Roth & Su 2022, theorem 2.10).
    """
    return 0.5 + rate * (float(stats.norm.cdf(mu / math.sqrt(2))) - 0.5)


def pooled_area(distances: npt.NDArray[np.float64]) -> float:
    """Area of the log likelihood ratios of candidates whose known gradients are `distances` (n,) deviations of the
    noise long.

    That of candidate i is N(-+d_i^2/2, d_i^2), so a member i beats another j with probability
    Phi(sqrt(d_i^2 + d_j^2) / 2).
    """
    squares = distances**2
    return float(stats.norm.cdf(np.sqrt(squares[:, None] + squares[None, :]) / 2).mean())
