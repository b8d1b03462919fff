"""A lower bound on epsilon that holds for every mechanism of the claimed trade-off.

**One run.** m canaries are in or out by a fair coin each. From the release alone a fixed number g of them is guessed:
the highest scores to be in, the lowest to be out. Let p_i be the chance of exactly i right guesses. For every f-DP
mechanism and every i (Mahloujifar, Melis, Chaudhuri 2024, "Auditing f-differential privacy in one run",
https://arxiv.org/abs/2410.22235, theorem 3.2 and algorithm 3)

    r_i <= 1 - f(h_{i-1}),    r_i = sum over l >= i of l p_l / m,    h_i = sum over l >= i of (g - l) p_l / m

as flipping one coin turns a right guess into a wrong one. Nothing is assumed about how canaries depend on each
other; a test that takes them for independent refutes true claims (`tests/threat_model/test_certificate.py`).

**What is registered.** g and its split are chosen by simulating the claimed mechanism (`register`), before any score
is seen: the best threshold of the observed scores would claim too much.

**Repeated steps.** Independent releases with one canary each give independent hits and false alarms, whose ordinary
intervals (Clopper and Pearson 1934) are held against f.

What is refuted is a trade-off function. As an epsilon that is the one of the largest trade-off function, in the family
of the claimed release with more noise, that is refuted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import ndtri

from ...errors import InputError
from ..tradeoff import Claim, GaussianTradeOff, TradeOff

Array = npt.NDArray[np.float64]
Coins = npt.NDArray[np.bool_]
# Noise factors of a claim's family, from 2^6 or 2^4 down: finer and wider where a member costs no accounting.
_EXACT = tuple(2 ** (6 - i / 256) for i in range(14 * 256))
_ACCOUNTED = tuple(2 ** (4 - i / 8) for i in range(7 * 8))
_SIMULATIONS = 40
_FAULT = 0.6  # of the claimed noise: what the number of guesses is to find


@dataclass(frozen=True)
class Registered:
    """Fixed before any score is seen: of `canaries`, the `highest` are guessed to be in and the `lowest` to be out."""

    canaries: int
    highest: int
    lowest: int

    @property
    def guesses(self) -> int:
        return self.highest + self.lowest

    def right(self, scores: Array, inside: Coins) -> int:
        """How many guesses from scores (m,) are right. Raises: InputError for another number, or scores that are none."""
        if scores.shape != (self.canaries,) or inside.shape != (self.canaries,):
            raise InputError("scores", scores.shape, f"expected ({self.canaries},), as was registered")
        if not np.isfinite(scores).all():
            raise InputError("scores", float("nan"), "expected finite numbers")
        order = np.argsort(scores, kind="stable")
        found = inside[order[self.canaries - self.highest :]].sum() + (~inside[order[: self.lowest]]).sum()
        return int(found)


def refutes(claim: TradeOff, right: int, guesses: int, canaries: int, level: float) -> bool:
    """Whether P[at least `right` of `guesses` guesses are right] <= `level` in every mechanism of this trade-off.

    The least total probability of all outcomes is built up from that of the tail; above 1 it is impossible.
    """
    if not 0 <= right <= guesses <= canaries:
        raise InputError("right", right, f"expected 0 to {guesses} of at most {canaries}")
    if right == 0:
        return False
    m = float(canaries)
    r, h = level * right / m, level * (guesses - right) / m
    most = guesses / m
    alarms = claim.alarms
    for i in range(right - 1, -1, -1):
        least = alarms(min(r, 1.0))
        if least > h:
            r += i / (guesses - i) * (least - h)
            h = least
        if r + h > most:
            return True
    return False


def _bound(claim: Claim, refuted: Callable[[float], bool]) -> float:
    """The epsilon of the last member of the claim's family, by less and less noise, that is refuted; 0 for none."""
    grid = (
        _EXACT if claim.exact else _ACCOUNTED
    )  # by falling noise: claims that are harder and harder to refute
    low, high = -1, len(grid)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if refuted(grid[middle]) else (low, middle)
    return 0.0 if low < 0 else claim.epsilon(grid[low])


@dataclass(frozen=True)
class Certificate:
    """`epsilon`: at least this, at `level` (the chance of a false one); `refuted`: whether the claim is."""

    epsilon: float
    refuted: bool
    claimed: float
    level: float
    cases: int


def one_run(claim: Claim, registered: Registered, right: int, level: float) -> Certificate:
    """From `right` of the registered guesses."""

    def refuted(noise: float) -> bool:
        return refutes(claim.tradeoff(noise), right, registered.guesses, registered.canaries, level)

    return Certificate(_bound(claim, refuted), refuted(1.0), claim.epsilon(), level, registered.canaries)


def repeated(claim: Claim, hits: int, members: int, alarms: int, others: int, level: float) -> Certificate:
    """From independent releases: `hits` of those with the canary and `alarms` of those without pass the threshold.

    Half of `level` for each of the two rates.
    """
    hit = 0.0 if hits == 0 else float(stats.beta.ppf(level / 2, hits, members - hits + 1))
    alarm = 1.0 if alarms == others else float(stats.beta.ppf(1 - level / 2, alarms + 1, others - alarms))

    def refuted(noise: float) -> bool:
        return hit > claim.tradeoff(noise).hits(alarm)

    return Certificate(_bound(claim, refuted), refuted(1.0), claim.epsilon(), level, members + others)


@dataclass(frozen=True)
class ScoreLaw:
    """Scores of the claimed mechanism in units of the clip: `steps` steps with noise z each, joined at `rate`.

    Only the choice of a threshold rests on it, so that what is wrong in it costs power, not truth.
    """

    noise: float
    steps: int = 1
    rate: float = 1.0

    def draw(self, inside: Coins, generator: np.random.Generator) -> Array:
        joined = generator.binomial(self.steps, self.rate, size=inside.shape) * inside
        noise = generator.standard_normal(inside.shape)
        found: Array = joined + self.noise * math.sqrt(self.steps) * noise
        return found


@lru_cache(maxsize=64)
def register(law: ScoreLaw, canaries: int, level: float) -> Registered:
    """The number and split of guesses that certify most of a mechanism with 0.6 times the claimed noise.

    For the claimed noise itself that is close to the best too; no observed score enters.
    """
    law = replace(law, noise=_FAULT * law.noise)
    generator = np.random.default_rng(0)
    inside = generator.random((_SIMULATIONS, canaries)) < 0.5
    order = np.argsort(law.draw(inside, generator), axis=1)
    ranked = np.take_along_axis(inside, order, axis=1)  # by ascending score
    # Right guesses among the k highest and the k lowest, on average over the simulations.
    high = np.cumsum(ranked[:, ::-1], axis=1).mean(0)
    low = np.cumsum(~ranked, axis=1).mean(0)
    best, chosen = -1.0, Registered(canaries, canaries, 0)
    for guesses in np.unique(np.geomspace(min(8, canaries), canaries, 25).round().astype(int)):
        for highest in {int(guesses), int(guesses) // 2}:
            lowest = int(guesses) - highest
            right = high[highest - 1] + (low[lowest - 1] if lowest else 0.0)
            found = _certified_mu(int(right), int(guesses), canaries, level)
            if found > best:
                best, chosen = found, Registered(canaries, highest, lowest)
    return chosen


def _certified_mu(right: int, guesses: int, canaries: int, level: float) -> float:
    """The largest Gaussian trade-off that is refuted, to 1%: the yardstick of `register`."""
    low, high = 0.0, 16.0
    while high - low > 0.01:
        middle = (low + high) / 2
        if refutes(GaussianTradeOff(middle), right, guesses, canaries, level):
            low = middle
        else:
            high = middle
    return low


@lru_cache(maxsize=64)
def register_threshold(law: ScoreLaw, releases: int, level: float) -> float:
    """The threshold on a score, in clips, that certifies most in `releases` independent releases; as `register`."""
    law = replace(law, noise=_FAULT * law.noise)
    generator = np.random.default_rng(0)
    inside = np.arange(400 * releases) % 2 == 0
    scores = law.draw(inside, generator)
    half = releases // 2

    def certified(threshold: float) -> float:
        hits = round(float((scores[inside] > threshold).mean()) * half)
        alarms = round(float((scores[~inside] > threshold).mean()) * half)
        if hits == 0 or alarms == half:
            return -math.inf
        low = stats.beta.ppf(level / 2, hits, half - hits + 1)
        high = stats.beta.ppf(1 - level / 2, alarms + 1, half - alarms)
        return float(ndtri(low) - ndtri(high))

    spread = law.noise * math.sqrt(law.steps)
    top = law.steps * law.rate
    # Below what a canary scores without noise, so that a control passes it.
    return float(max(np.linspace(-3 * spread, 0.9 * top, 61), key=certified))
