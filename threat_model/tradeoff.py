"""Trade-off functions: what a mechanism's account says of every test that tells neighbouring data sets apart.

f(x) is the least chance of a miss among tests with a false alarm rate of at most x (Dong, Roth, Su 2022, "Gaussian
differential privacy", definition 2.1). An account of Gaussian releases of all data gives f exactly; any other gives
its (epsilon, delta) at every delta, and with them (proposition 2.12)

    f(x) = max over (epsilon, delta) of max{0, 1 - delta - exp(epsilon) x, exp(-epsilon) (1 - delta - x)}

which bounds from below the f of every mechanism that keeps the account. Both are symmetric: they hold for adding an
example and for removing one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
from scipy import optimize
from scipy.special import log_ndtr, ndtr, ndtri

from ..errors import InputError
from ..privacy.accounting import epsilon as accounted
from ..privacy.events import EpochGaussian, Event, GaussianSteps, SkellamSteps, TruncatedGaussianSteps

Array = npt.NDArray[np.float64]
_SMALLEST_DELTA = 1e-10  # below it, floating point in the account would say more than privacy does
_DELTAS = 160


@dataclass(frozen=True)
class GaussianTradeOff:
    """Of N(0, 1) against N(mu, 1).

    `hits(x)` = 1 - f(x) = Phi(Phi^-1(x) + mu), the most hits at false alarm rate x; `alarms(y)`, the least false
    alarms at hit rate y.
    """

    mu: float

    def hits(self, alarms: float) -> float:
        return float(ndtr(ndtri(alarms) + self.mu))

    def alarms(self, hits: float) -> float:
        return float(ndtr(ndtri(hits) - self.mu))


@dataclass(frozen=True)
class AccountedTradeOff:
    """The largest trade-off function that pairs of (epsilon, delta) guarantee; no pair guarantees nothing."""

    pairs: tuple[tuple[float, float], ...]

    @cached_property
    def _lines(self) -> tuple[Array, Array]:
        """hits <= offset + slope * alarms, by slope."""
        epsilons, deltas = np.array(self.pairs).reshape(-1, 2).T
        slopes = np.concatenate([np.exp(epsilons), np.exp(-epsilons)])
        offsets = np.concatenate([deltas, 1 - np.exp(-epsilons) * (1 - deltas)])
        return slopes, offsets

    def hits(self, alarms: float) -> float:
        slopes, offsets = self._lines
        return float((offsets + slopes * alarms).min(initial=1.0))

    def alarms(self, hits: float) -> float:
        slopes, offsets = self._lines
        return float(((hits - offsets) / slopes).max(initial=0.0))


TradeOff = GaussianTradeOff | AccountedTradeOff


def mu_of(event: Event) -> float | None:
    """mu of a release that is exactly Gaussian; none where sampling or another noise makes it something else."""
    if isinstance(event, EpochGaussian) or (isinstance(event, GaussianSteps) and event.sampling_rate == 1):
        return math.sqrt(event.steps) / event.noise_multiplier if event.noise_multiplier > 0 else math.inf
    return None


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon at `delta` of one Gaussian release (Dong et al. 2022, corollary 2.13), 0 if that is enough."""

    def excess(epsilon: float) -> float:
        second = math.exp(min(epsilon + float(log_ndtr(-epsilon / mu - mu / 2)), 0.0))
        return float(ndtr(-epsilon / mu + mu / 2)) - second - delta

    if mu <= 0 or excess(0.0) <= 0:
        return 0.0
    return float(optimize.brentq(excess, 0.0, mu * (mu / 2 + 10), xtol=1e-9))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu of one Gaussian release that costs `epsilon` at `delta`."""
    if not epsilon > 0:
        raise InputError("epsilon", epsilon, "must be above 0")
    return float(optimize.brentq(lambda mu: gaussian_epsilon(mu, delta) - epsilon, 1e-6, 60.0, xtol=1e-10))


@lru_cache(maxsize=256)
def tradeoff(event: Event) -> TradeOff:
    """Of a ledger's event, whatever it consists of."""
    mu = mu_of(event)
    if mu is not None and math.isfinite(mu):
        return GaussianTradeOff(mu)
    # Evenly spread in log odds, so that both ends of f are as fine as its middle.
    odds = np.linspace(math.log(_SMALLEST_DELTA), -math.log(1e-3), _DELTAS)
    kept: list[tuple[float, float]] = []
    for delta in map(float, 1 / (1 + np.exp(-odds))):
        epsilon = accounted([event], delta)
        if math.isfinite(epsilon):
            kept.append((epsilon, delta))
        if epsilon == 0:  # more delta says no more
            break
    return AccountedTradeOff(tuple(kept))


def without_sampling(event: Event) -> Event:
    """The same release to somebody who knows that the example took part in every step."""
    if isinstance(event, TruncatedGaussianSteps):
        return GaussianSteps(
            sampling_rate=1.0,
            noise_multiplier=event.noise_multiplier,
            steps=event.steps,
            dimension=event.dimension,
        )
    if isinstance(event, GaussianSteps | SkellamSteps):
        return replace(event, sampling_rate=1.0)
    return event


def with_noise(event: Event, factor: float) -> Event:
    """The same release with `factor` times the noise."""
    if isinstance(event, SkellamSteps):
        return replace(event, variance=event.variance * factor**2)
    if isinstance(event, GaussianSteps | TruncatedGaussianSteps | EpochGaussian):
        return replace(event, noise_multiplier=event.noise_multiplier * factor)
    raise InputError("event", event, "has no noise to be scaled")


@dataclass(frozen=True)
class Claim:
    """What a ledger is charged for `event`. Lower bounds are sought in the family of the same release with more or
    less noise: `noise` is the factor."""

    event: Event
    delta: float

    def tradeoff(self, noise: float = 1.0) -> TradeOff:
        return tradeoff(self.event if noise == 1 else with_noise(self.event, noise))

    def epsilon(self, noise: float = 1.0) -> float:
        event = self.event if noise == 1 else with_noise(self.event, noise)
        mu = mu_of(event)
        return accounted([event], self.delta) if mu is None else gaussian_epsilon(mu, self.delta)

    @property
    def exact(self) -> bool:
        """Whether a member of the family costs no accounting."""
        return mu_of(self.event) is not None
