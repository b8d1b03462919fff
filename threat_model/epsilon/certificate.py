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

What is refuted is a trade-off function. As an epsilon it is that of the largest one that is refuted, in the family of
the claimed release with more noise or less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import stats

from ...errors import InputError
from ..tradeoff import Claim, TradeOff

Array = npt.NDArray[np.float64]
Coins = npt.NDArray[np.bool_]
# Noise factors of a claim's family, falling: finer and wider where a member costs no accounting.
_EXACT = tuple(2 ** (6 - i / 256) for i in range(14 * 256))
_ACCOUNTED = tuple(2 ** (3 - i / 8) for i in range(5 * 8))
_SIMULATIONS = 10
# Of the claimed noise: lacks that a registered test is to find, from the largest to the smallest.
_FAULTS = tuple(0.02 * i for i in range(5, 50))


@dataclass(frozen=True)
class Registered:
    """Fixed before any score is seen: how many of the `canaries` are guessed to be in, and how many to be out."""

    canaries: int
    highest: int
    lowest: int

    @property
    def guesses(self) -> int:
        return self.highest + self.lowest

    def right(self, scores: Array, inside: Coins) -> int:
        """How many guesses from scores (m,) are right. Raises: InputError for another number, or for NaN."""
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
    if not refuted(grid[0]):
        return 0.0
    return claim.epsilon(grid[_last(lambda i: i == 0 or refuted(grid[i]), len(grid))])


def refutable(claim: TradeOff, canaries: int, level: float) -> bool:
    """Whether so many canaries can refute the claim, if every guess is right."""
    return any(refutes(claim, guesses, guesses, canaries, level) for guesses in _numbers(canaries))


def refutable_repeatedly(claim: TradeOff, releases: int, level: float) -> bool:
    """Whether so many independent releases can, if the canary is told apart in each."""
    return _rates_refute(claim, releases // 2, releases // 2, 0, releases - releases // 2, level)


def _numbers(canaries: int) -> list[int]:
    """Numbers of guesses that are considered."""
    found: list[int] = np.unique(np.geomspace(min(8, canaries), canaries, 40).round().astype(int)).tolist()
    return found


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

    def refuted(noise: float) -> bool:
        return _rates_refute(claim.tradeoff(noise), hits, members, alarms, others, level)

    return Certificate(_bound(claim, refuted), refuted(1.0), claim.epsilon(), level, members + others)


def _rates_refute(claim: TradeOff, hits: int, members: int, alarms: int, others: int, level: float) -> bool:
    hit = 0.0 if hits == 0 else float(stats.beta.ppf(level / 2, hits, members - hits + 1))
    alarm = 1.0 if alarms == others else float(stats.beta.ppf(1 - level / 2, alarms + 1, others - alarms))
    return hit > claim.hits(alarm)


@dataclass(frozen=True)
class ScoreLaw:
    """Scores of the claimed mechanism in units of the clip: `steps` steps with noise z each, joined at `rate`.

    Only the choice of a threshold rests on it, so that what is wrong in it costs power, not truth.
    """

    noise: float
    steps: int = 1
    rate: float = 1.0

    def with_noise(self, factor: float) -> ScoreLaw:
        return replace(self, noise=factor * self.noise)

    def draw(self, inside: Coins, generator: np.random.Generator) -> Array:
        joined = generator.binomial(self.steps, self.rate, size=inside.shape) * inside
        noise = generator.standard_normal(inside.shape)
        found: Array = joined + self.noise * math.sqrt(self.steps) * noise
        return found


@lru_cache(maxsize=64)
def register(claim: TradeOff, law: ScoreLaw, canaries: int, level: float) -> Registered:
    """The number and split of guesses that refute `claim` already at the smallest lack of noise.

    By simulations of the claimed mechanism with less and less noise, in which each split's average is judged: it is
    found in half of all runs. No observed score enters.
    """
    generator = np.random.default_rng(0)
    inside = generator.random((_SIMULATIONS, canaries)) < 0.5
    right: list[tuple[Array, Array]] = []  # by fault, of the k highest and the k lowest
    for fault in _FAULTS:
        order = np.argsort(law.with_noise(fault).draw(inside, generator), axis=1)
        ranked = np.take_along_axis(inside, order, axis=1)
        right.append(
            (np.cumsum(ranked[:, ::-1], axis=1).mean(0), np.cumsum(~ranked, axis=1).mean(0))
        )  # each (m,)
    best, chosen = -1, Registered(canaries, canaries - canaries // 2, canaries // 2)
    for guesses in _numbers(canaries):
        for highest in (guesses, guesses - guesses // 2):
            lowest = guesses - highest

            def refuted(fault: int, highest: int = highest, lowest: int = lowest) -> bool:
                high, low = right[fault]
                found = int(high[highest - 1] + (low[lowest - 1] if lowest else 0.0))
                return refutes(claim, found, highest + lowest, canaries, level)

            found = _last(refuted, len(_FAULTS))
            if found > best:
                best, chosen = found, Registered(canaries, highest, lowest)
    return chosen


@lru_cache(maxsize=64)
def register_threshold(claim: TradeOff, law: ScoreLaw, releases: int, level: float) -> float:
    """The threshold on a score, in clips, for as many independent releases; chosen as by `register`."""
    generator = np.random.default_rng(0)
    inside = np.arange(200 * releases) % 2 == 0
    drawn = [law.with_noise(fault).draw(inside, generator) for fault in _FAULTS]
    scores = [(np.sort(each[inside]), np.sort(each[~inside])) for each in drawn]
    half, spread, top = releases // 2, law.noise * math.sqrt(law.steps), law.steps * law.rate
    best, chosen = -1, 0.5 * top
    # Below what a canary scores without noise, so that a control passes it.
    for threshold in np.linspace(-2 * spread, 0.9 * top, 61).tolist():

        def refuted(fault: int, threshold: float = threshold) -> bool:
            hits, alarms = (1 - np.searchsorted(each, threshold) / len(each) for each in scores[fault])
            return _rates_refute(claim, round(hits * half), half, round(alarms * half), half, level)

        found = _last(refuted, len(_FAULTS))
        if found > best:
            best, chosen = found, threshold
    return chosen


def _last(holds: Callable[[int], bool], count: int) -> int:
    """The last of `count` cases for which something holds that holds up to some case; -1 for none."""
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
