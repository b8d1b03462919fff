"""Epsilon by privacy loss distributions (PLD), for Gaussian releases under add/remove adjacency.

The mechanism is the Poisson-subsampled Gaussian (Abadi et al. 2016, section 3.1), with or without a cap on the
batch (Ganesh et al. 2025, section 4.3). Each kind of step is discretised by "Connect the Dots" (Doroshenko et
al. 2022, Algorithm 1), whose estimate is an upper bound, and composed by FFT (Koskela et al. 2020) with the
dp-accounting library.

Two choices keep the figure an upper bound: the grid always rounds the loss up, and the mass that floating point may
lose is subtracted from delta before epsilon is computed.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from scipy.stats import binom

from .events import SMALLEST_NOISE, EpochGaussian, Event, GaussianSteps, NoNoise, TruncatedGaussianSteps
from .pld_tails import Tail, tails_of

# The grid is 1/16 of the mean step's loss deviation or finer: measured to over-report by at most 0.06%. Still
# finer would be slower and less sound: rounding errors of the single-step masses grow as 1 / grid. The cap on
# cells binds for rates of 1e-4 and below, and then over-reports by up to a few percent.
_GRID_FRACTION = 16
_MAX_CELLS = 1 << 16
# Floating point may lose this much probability mass per step (a few ulp of the hockey-stick curve and the FFT power).
_LOST_PER_STEP = 4e-15
_LOST_ONCE = 1e-13
# Beyond these the arithmetic fails: more noise and lower rates are replaced by these.
_LARGEST_NOISE = 1e4
_SMALLEST_RATE = 1e-7
_FINEST_GRID = 2.0**-27
# A cap that is exceeded with a lower probability costs less than _LOST_ONCE.
_NEVER = 1e-100

EVENTS = (GaussianSteps, TruncatedGaussianSteps, EpochGaussian, NoNoise)


class _Kind(NamedTuple):
    """The key of equal steps. `larger` is the size of the larger neighbour, `cap` 0 where batches have none."""

    rate: float
    noise: float
    larger: int = 0
    cap: int = 0


def pld_epsilon(events: Sequence[Event], delta: float) -> float:
    """The epsilon of `events`, all of `EVENTS`, at `delta`: an upper bound; 0.0 for no events.

    inf where floating point cannot resolve delta (4e-15 per step), and below noise_multiplier 0.01.
    """
    counts: Counter[_Kind] = Counter()
    for event in events:
        counts[_kind(event)] += event.steps
    return _epsilon(tuple(sorted((kind, steps) for kind, steps in counts.items())), delta)


def _kind(event: Event) -> _Kind:
    if isinstance(event, GaussianSteps):
        return _Kind(event.sampling_rate, event.noise_multiplier)
    if isinstance(event, EpochGaussian | NoNoise):
        # Whatever the batch, an epoch is one Gaussian release of each example.
        return _Kind(1.0, event.noise_multiplier)
    if isinstance(event, TruncatedGaussianSteps):
        larger = event.examples + 1
        if _truncation(event.sampling_rate, larger, event.batch_cap)[0] < _NEVER:
            return _Kind(event.sampling_rate, event.noise_multiplier)
        return _Kind(event.sampling_rate, event.noise_multiplier, larger, event.batch_cap)
    raise TypeError(f"no privacy loss distribution for {type(event).__name__}")


@lru_cache(maxsize=4096)
def _epsilon(counts: tuple[tuple[_Kind, int], ...], delta: float) -> float:
    """Composition of kinds, each once."""
    if not counts:
        return 0.0
    # A capped step mixes two distributions and may lose twice as much.
    lost = _LOST_ONCE + _LOST_PER_STEP * sum(steps * (2 if kind.cap else 1) for kind, steps in counts)
    if delta <= lost or min(kind.noise for kind, _ in counts) < SMALLEST_NOISE:
        return math.inf
    return max(float(tail.epsilon(delta - lost)) for tail in _tails(counts))


@lru_cache(maxsize=8)
def _tails(counts: tuple[tuple[_Kind, int], ...]) -> Sequence[Tail]:
    """Of the composition, without a delta: a trade-off function asks for many."""
    # T Gaussian steps on all data are one with noise z / sqrt(T) (Dong et al. 2022, Corollary 3.3).
    whole = sum(steps / min(k.noise, 1e6) ** 2 for k, steps in counts if k.rate == 1.0 and not k.cap)
    sampled = [
        (k._replace(rate=max(k.rate, _SMALLEST_RATE), noise=min(k.noise, _LARGEST_NOISE)), steps)
        for k, steps in counts
        if k.rate < 1.0 or k.cap
    ]
    if whole:
        sampled.append((_Kind(1.0, min(whole**-0.5, _LARGEST_NOISE)), 1))
    grid = _grid(sampled)
    parts = [_composed(kind, steps, grid) for kind, steps in sampled]
    with np.errstate(over="ignore"):
        return tails_of(reduce(lambda left, right: left.compose(right), parts))


def _grid(counts: list[tuple[_Kind, int]]) -> float:
    """The spacing of the loss grid: a power of two, so that cached distributions serve growing ledgers."""
    total = sum(steps for _, steps in counts)
    scales = [(steps, *_scale_of(kind)) for kind, steps in counts]
    variance = sum(steps * deviation**2 for steps, deviation, _ in scales) / total
    accurate = math.floor(math.log2(math.sqrt(variance) / _GRID_FRACTION))
    affordable = math.ceil(math.log2(max(span for _, _, span in scales) / _MAX_CELLS))
    return max(2.0 ** max(accurate, affordable), _FINEST_GRID)


def _scale_of(kind: _Kind) -> tuple[float, float]:
    """One step's privacy loss: its standard deviation and its span, roughly for a capped one."""
    deviation, span = _loss_scale(kind.rate, kind.noise)
    if not kind.cap:
        return deviation, span
    truncated, joins = _truncation(kind.rate, kind.larger, kind.cap)
    # As if one example were replaced: a loss on either side.
    pushed, wide = _loss_scale(max(joins, _SMALLEST_RATE), kind.noise / 2)
    return math.sqrt((1 - truncated) * deviation**2 + truncated * (2 * pushed) ** 2), max(span, 2 * wide)


@lru_cache(maxsize=256)
def _loss_scale(rate: float, noise: float) -> tuple[float, float]:
    """One step's privacy loss: its standard deviation (the larger of add and remove) and its span."""
    # ln((1-q) N(x; 0, z^2) + q N(x; 1, z^2)) - ln N(x; 0, z^2); 10 deviations are what the library keeps.
    x = np.linspace(-10 * noise, 10 * noise + 1, 8001)
    without = math.log1p(-rate) if rate < 1 else -math.inf
    loss = np.logaddexp(without, math.log(rate) + (2 * x - 1) / (2 * noise**2))
    absent = np.exp(-0.5 * (x / noise) ** 2)
    present = (1 - rate) * absent + rate * np.exp(-0.5 * ((x - 1) / noise) ** 2)

    def deviation(density: Any) -> float:
        weight = density / density.sum()
        return float(np.sqrt(weight @ (loss - weight @ loss) ** 2))

    return max(deviation(absent), deviation(present)), float(loss[-1] - loss[0])


@lru_cache(maxsize=256)
def _truncation(rate: float, larger: int, cap: int) -> tuple[float, float]:
    """(probability that the batch is cut if a given example joins, that it is kept if the batch is cut)."""
    cut = float(binom.sf(cap - 1, larger - 1, rate))
    if cut < _NEVER:
        return cut, 0.0
    return cut, float(binom.sf(cap, larger, rate)) * cap / cut / larger


@lru_cache(maxsize=8)
def _composed(kind: _Kind, steps: int, grid: float) -> Any:
    step = _single(kind, grid)
    return step.self_compose(steps) if steps > 1 else step


@lru_cache(maxsize=32)
def _single(kind: _Kind, grid: float) -> Any:
    if kind.cap:
        return privacy_loss_distribution.from_truncated_subsampled_gaussian_mechanism(
            dataset_size=kind.larger,
            sampling_probability=kind.rate,
            truncated_batch_size=kind.cap,
            noise_multiplier=kind.noise,
            value_discretization_interval=grid,
        )
    return privacy_loss_distribution.from_gaussian_mechanism(
        kind.noise, sampling_prob=kind.rate, value_discretization_interval=grid, pessimistic_estimate=True
    )
