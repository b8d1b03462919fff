"""Epsilon by Renyi differential privacy (Mironov 2017), for releases that have no privacy loss distribution.

Gaussian steps come from dp-accounting: Poisson sampling by Mironov, Talwar, Zhang 2019, fixed-size batches by
Wang, Balle, Kasiviswanathan 2019, Theorem 27. Skellam steps are computed here:

    eps(a) = a D2^2 / (2 mu) + min(((2a-1) D2^2 + 6 D1) / (4 mu^2), 3 D1 / (2 mu))
                                     (Agarwal, Kairouz, Liu 2021, Corollary 3.6, whole orders a >= 2)

and, for a Poisson sample of rate q, whole orders,

    exp((a-1) eps'(a)) = (1-q)^(a-1) (a q - q + 1) + sum_{l=2..a} C(a,l) q^l (1-q)^(a-l) exp((l-1) eps(l)).

With Q the law without the example, P with it and R = (1-q) Q + q P, that is the binomial expansion of
E_Q[(R/Q)^a], so it bounds D(R || Q). It bounds D(Q || R) too, without the factor 3 that Zhu & Wang (2019,
Theorem 5) need for any mechanism, because Skellam noise, like Gaussian noise, is symmetric: P(x) = Q(D - x) for a
shift by D (Mironov, Talwar, Zhang 2019, Theorem 5). Take x and D - x together, with r = P(x)/Q(x) >= 1: R/Q is
u = 1-q+qr at one and s = 1-q+q/r at the other, and r (1-s) = u-1. With g(x) = x^a - x^(1-a) the two add
Q(x) (g(u) + r g(s)) to the difference, which is not negative if g(u)/(u-1) >= g(1/s)/(1/s-1). It holds: g is
convex above 1 with g(1) = 0, so g(x)/(x-1) rises, and u s = 1 + q(1-q)(r + 1/r - 2) >= 1.

Between whole orders (a-1) eps(a) is bounded by its chord, because it is convex. The conversion to (epsilon,
delta) is dp-accounting's (Canonne, Kamath, Steinke 2020, Proposition 12).
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import numpy as np
from dp_accounting.privacy_accountant import NeighboringRelation
from dp_accounting.rdp import RdpAccountant
from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from .events import REPLACE_ONE, SMALLEST_NOISE, Event, SkellamSteps

# Every fractional order lies between two whole orders of this list, as the chord needs.
_WHOLE = (*range(2, 64), 128, 256, 512, 1024)
ORDERS = tuple(sorted({1 + tenth / 10 for tenth in range(1, 100)} | {float(order) for order in _WHOLE}))
# Beyond it squares overflow. Less noise costs more, so larger values are replaced by it.
_LARGEST_NOISE = 1e6
# Bound on what floating point may lose of log E[exp((a-1) loss)] in one step.
_LOST_PER_STEP = 1e-13


def rdp_epsilon(events: Sequence[Event], delta: float) -> float:
    """The epsilon of `events` at `delta`: an upper bound; 0.0 for no events. All must have one adjacency."""
    counts: Counter[Event] = Counter()
    for event in events:
        counts[event.step] += event.steps
    if not counts:
        return 0.0
    # Sensitivities that fail with a probability, which is subtracted from delta: see `SkellamSteps`.
    delta -= sum(steps * step.beta for step, steps in counts.items() if isinstance(step, SkellamSteps))
    if delta <= 0:
        return math.inf
    total = sum((steps * rdp_of(step) for step, steps in counts.items()), np.zeros(len(ORDERS)))
    # An order that cannot be computed bounds nothing; NumPy's minimum would choose its NaN.
    total = np.where(np.isnan(total), np.inf, total)
    found = float(compute_epsilon(ORDERS, total, delta)[0])
    return math.inf if math.isnan(found) else found


def epsilon_at(order: float, divergence: float, delta: float) -> float:
    """The epsilon at `delta` of a mechanism whose Renyi divergence at `order` is at most `divergence`."""
    found = divergence + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
    return max(found, 0.0) if not math.isnan(found) else math.inf


@lru_cache(maxsize=256)
def rdp_of(step: Event) -> NDArray[np.float64]:
    """(len(ORDERS),) Renyi divergence bounds of one step; inf where none is known."""
    orders = np.asarray(ORDERS)
    if _noise(step) < SMALLEST_NOISE:
        return np.full(len(ORDERS), math.inf)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        rdp = _skellam(step) if isinstance(step, SkellamSteps) else _of_library(step)
        bound = np.maximum(rdp, 0.0) + _LOST_PER_STEP / (orders - 1)
    bound.flags.writeable = False
    return bound


def _noise(step: Event) -> float:
    """The noise's standard deviation over the sensitivity to one example."""
    if isinstance(step, SkellamSteps):
        return math.sqrt(step.variance) / step.l2
    noise: float = step.noise_multiplier  # type: ignore[attr-defined]
    return noise


def _of_library(step: Event) -> NDArray[np.float64]:
    if _noise(step) > _LARGEST_NOISE:
        step = replace(step, noise_multiplier=_LARGEST_NOISE)  # type: ignore[call-arg]
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    if step.adjacency == REPLACE_ONE:
        relation = NeighboringRelation.REPLACE_ONE
    accountant = RdpAccountant(ORDERS, relation)
    with _quiet():
        accountant.compose(step.dp_event())
    # The library's public methods give epsilons only; a mixed list needs the divergences.
    rdp = np.asarray(accountant._rdp, dtype=np.float64)
    at = {1: 0.0} | {order: (order - 1) * float(rdp[ORDERS.index(order)]) for order in _WHOLE}
    return np.fmin(rdp, _chords(at))


def _skellam(step: SkellamSteps) -> NDArray[np.float64]:
    whole = np.arange(2, _WHOLE[-1] + 1, dtype=np.float64)  # (1023,) orders 2, 3, ...
    square, variance = step.l2**2, step.variance
    base = whole * square / (2 * variance) + np.minimum(
        ((2 * whole - 1) * square + 6 * step.l1) / (4 * variance**2), 3 * step.l1 / (2 * variance)
    )
    at = {1: 0.0}  # order -> (order - 1) * eps(order)
    for order in _WHOLE:
        at[order] = (order - 1) * float(base[order - 2])
        if step.sampling_rate < 1:
            # Sampling never increases the divergence, which is quasi-convex; computed with rounding it may.
            at[order] = min(at[order], _sampled(base, step.sampling_rate, order))
    return _chords(at)


def _chords(at: Mapping[int, float]) -> NDArray[np.float64]:
    """(len(ORDERS),) bounds from (order - 1) eps(order) at the whole orders and 1."""
    chords = []
    for alpha in ORDERS:
        low = math.floor(alpha)
        share = alpha - low
        upper = share * at[low + 1] if share else 0.0
        chords.append(((1 - share) * at[low] + upper) / (alpha - 1))
    return np.asarray(chords)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the library's log of each fractional order that it leaves out; the chord replaces those."""
    logger = logging.getLogger("absl")

    def nothing(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)


def _sampled(base: NDArray[np.float64], rate: float, order: int) -> float:
    """(order - 1) eps'(order): the logarithm of the sum in the module's docstring."""
    l = np.arange(2, order + 1, dtype=np.float64)  # noqa: E741, the paper's letter
    binomial = gammaln(order + 1) - gammaln(l + 1) - gammaln(order - l + 1)
    terms = binomial + l * math.log(rate) + (order - l) * math.log1p(-rate) + (l - 1) * base[: order - 1]
    first = (order - 1) * math.log1p(-rate) + math.log1p((order - 1) * rate)
    return float(logsumexp(np.concatenate([[first], terms])))
