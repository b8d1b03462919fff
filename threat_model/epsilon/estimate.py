"""What epsilon would be if scores were Gaussian: an estimate under a model, never a bound.

Scores of the canaries inside are taken for independent draws from N(a, s^2), those outside for N(b, s^2). The release
is then mu-GDP with mu = (a - b) / s at least, and sqrt(n m / (n + m)) times the usual estimate of mu follows the
noncentral t law with n + m - 2 degrees of freedom, whose quantiles give an exact interval (Hedges & Olkin 1985,
section 5.B). A mechanism whose scores depend on each other makes it wrong without any sign of it: it says nothing
of a claim that the certificate does not.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from ...errors import InputError
from ..intervals import LEVEL, Estimate
from ..tradeoff import gaussian_epsilon

Array = npt.NDArray[np.float64]


def gaussian_mu_estimate(members: Array, others: Array, level: float = LEVEL) -> Estimate:
    """The distance of the two means in deviations, with its interval.

    Raises:
        InputError: there are fewer than 20 of either, a score is not finite, or all are equal.
    """
    n, m = len(members), len(others)
    if min(n, m) < 20 or not (np.isfinite(members).all() and np.isfinite(others).all()):
        raise InputError("scores", min(n, m), "expected finite numbers, at least 20 of either kind")
    freedom = n + m - 2
    variance = ((n - 1) * members.var(ddof=1) + (m - 1) * others.var(ddof=1)) / freedom
    if not variance > 0:
        raise InputError(
            "scores", float(variance), "expected scores that differ: without noise there is no epsilon"
        )
    scale = math.sqrt(n * m / (n + m))
    t = float(members.mean() - others.mean()) / math.sqrt(variance) * scale

    def centre(probability: float) -> float:
        """The noncentrality at which no more than t is seen with this probability."""
        # Nearly normal, and only near by is the library's noncentral t accurate.
        spread = math.sqrt(1 + t**2 / (2 * freedom))
        near = t * (1 - 1 / (4 * freedom)) - float(stats.norm.ppf(probability)) * spread

        def excess(c: float) -> float:
            return float(stats.nct.cdf(t, freedom, c)) - probability

        return float(optimize.brentq(excess, near - spread / 2, near + spread / 2, xtol=1e-9))

    tail = (1 - level) / 2
    low, high = centre(1 - tail) / scale, centre(tail) / scale
    return Estimate(value=t / scale, low=low, high=high, n=n + m, method="exact", level=level)


def epsilon_estimate(members: Array, others: Array, delta: float, level: float = LEVEL) -> Estimate:
    """The epsilon at `delta` of the Gaussian release that the scores look like; errors as `gaussian_mu_estimate`."""
    mu = gaussian_mu_estimate(members, others, level)
    value, low, high = (gaussian_epsilon(max(x, 0.0), delta) for x in (mu.value, mu.low, mu.high))
    return mu.model_copy(update={"value": value, "low": low, "high": high})
