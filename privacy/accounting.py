"""What a list of releases costs: epsilon by privacy loss distributions (PLD).

Purpose: one accountant for planning, calibration and the ledger. The mechanism is the Poisson-subsampled
Gaussian under add/remove adjacency (Abadi et al. 2016, section 3.1). Each kind of step is discretised by
"Connect the Dots" (Doroshenko et al. 2022, Algorithm 1), whose estimate is an upper bound, and composed by
FFT (Koskela et al. 2020) with the dp-accounting library.

Three choices keep the figure an upper bound: the grid only ever rounds the loss up, what floating point may
lose is taken off delta before epsilon is read, and displayed epsilons are rounded up.

The composition theorem asks that (sampling_rate, noise_multiplier, steps) of a release be chosen without
looking at earlier releases (else a filter is needed: Rogers et al. 2016): fix them in the plan of a run.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, reduce
from numbers import Real
from typing import Any

import numpy as np
from dp_accounting import dp_event
from dp_accounting.pld import privacy_loss_distribution

from ..errors import InputError

MECHANISM = "Poisson-subsampled Gaussian"
UNIT = "one example of one company"
ADJACENCY = "add or remove one example"
MAX_STEPS = 1_000_000

_EVENT_NAME = "poisson_subsampled_gaussian"
_EVENT_VERSION = 1
# The grid is 1/16 of the mean step's loss deviation or finer: measured to over-report by at most 0.06%. Still
# finer would be slower and less sound: rounding errors of the single-step masses grow as 1 / grid. The cap on
# cells binds for rates of 1e-4 and below, and then over-reports by up to a few percent.
_GRID_FRACTION = 16
_MAX_CELLS = 1 << 16
# Floating point may lose this much mass per step (a few ulp of the hockey-stick curve, and of the FFT power).
_LOST_PER_STEP = 4e-15
_LOST_ONCE = 1e-13
# Beyond these the arithmetic fails: less noise counts as none, more noise and rarer sampling as these.
_SMALLEST_NOISE = 0.01
_LARGEST_NOISE = 1e4
_SMALLEST_RATE = 1e-7
_FINEST_GRID = 2.0**-27


@dataclass(frozen=True, kw_only=True)
class GaussianSteps:
    """A release as data: `steps` sums of a Poisson batch (rate q), clipped to C, plus N(0, (z C)^2) noise.

    The meaning of version 1 never changes, so that another accountant can recompute a ledger years later.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        rate = _real("sampling_rate", self.sampling_rate)
        noise = _real("noise_multiplier", self.noise_multiplier)
        if not 0 < rate <= 1:
            raise InputError("sampling_rate", rate, "must be above 0 and at most 1")
        if not noise > 0:
            raise InputError("noise_multiplier", noise, "must be above 0: no noise, no guarantee")
        # Plain numbers whatever came in (numpy scalars do not serialise).
        object.__setattr__(self, "sampling_rate", rate)
        object.__setattr__(self, "noise_multiplier", noise)
        object.__setattr__(self, "steps", _steps("steps", self.steps))

    def to_json(self) -> str:
        return json.dumps({"mechanism": _EVENT_NAME, "version": _EVENT_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> "GaussianSteps":
        try:
            fields = json.loads(text)
        except (TypeError, ValueError) as error:
            raise InputError("event", text, "must be a JSON object") from error
        expected = {"mechanism", "version", "sampling_rate", "noise_multiplier", "steps"}
        if not isinstance(fields, dict) or set(fields) != expected:
            raise InputError("event", text, f"must be a JSON object with exactly {sorted(expected)}")
        if fields.pop("mechanism") != _EVENT_NAME or fields.pop("version") != _EVENT_VERSION:
            raise InputError("event", text, f"must be a {_EVENT_NAME} of version {_EVENT_VERSION}")
        return cls(**fields)

    def dp_event(self) -> dp_event.DpEvent:
        """The same release in dp-accounting's vocabulary, for another accountant."""
        step = dp_event.PoissonSampledDpEvent(
            self.sampling_rate, dp_event.GaussianDpEvent(self.noise_multiplier)
        )
        return dp_event.SelfComposedDpEvent(step, self.steps)


@dataclass(frozen=True)
class Guarantee:
    """An epsilon with everything that gives it a meaning."""

    epsilon: float
    delta: float
    mechanism: str
    unit: str = UNIT
    adjacency: str = ADJACENCY
    accountant: str = "PLD"

    def __str__(self) -> str:
        return (
            f"epsilon={round_up(self.epsilon)} at delta={self.delta:g} ({self.mechanism}; unit: {self.unit}; "
            f"adjacency: {self.adjacency}; accountant: {self.accountant})"
        )


def epsilon(events: Iterable[GaussianSteps], delta: float) -> float:
    """The epsilon of all `events` together at `delta`: an upper bound; 0.0 for no events.

    eps(delta) = min {e >= 0: P[M(D) in S] - exp(e) P[M(D') in S] <= delta for all S and adjacent D, D'}

    inf where floating point cannot resolve delta (4e-15 per step), and below noise_multiplier 0.01.
    """
    counts: Counter[tuple[float, float]] = Counter()
    for event in events:
        counts[event.sampling_rate, event.noise_multiplier] += event.steps
    kinds = tuple(sorted((rate, noise, steps) for (rate, noise), steps in counts.items()))
    return _epsilon(kinds, _delta(delta))


def releases_within(
    epsilon_ceiling: float, delta: float, event: GaussianSteps, spent: Iterable[GaussianSteps] = ()
) -> int:
    """How many releases like `event` fit under the ceiling after `spent` (at most MAX_STEPS of its steps)."""
    ceiling, earlier = _epsilon_target(epsilon_ceiling), list(spent)

    def fits(count: int) -> bool:
        return epsilon([*earlier, replace(event, steps=count * event.steps)], delta) <= ceiling

    return largest(fits, MAX_STEPS // event.steps)


def steps_within(epsilon: float, delta: float, sampling_rate: float, noise_multiplier: float) -> int:
    """How many steps fit within (epsilon, delta); at most MAX_STEPS."""
    step = GaussianSteps(sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, steps=1)
    return releases_within(epsilon, delta, step)


def noise_multiplier_for(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The least noise (five digits, rounded up) with which `steps` steps cost at most `epsilon`.

    Put back into `epsilon()`, it costs between 0.99 and 1 times the target.
    """
    target = _epsilon_target(epsilon)
    if target == 0:
        raise InputError("epsilon", epsilon, "must be above 0: no finite noise reaches 0")
    delta = _delta(delta)

    def cost(noise: float) -> float:
        event = GaussianSteps(sampling_rate=sampling_rate, noise_multiplier=noise, steps=steps)
        return _epsilon(((event.sampling_rate, event.noise_multiplier, event.steps),), delta)

    # 1. Bracket: `low` costs more than the target, `high` at most the target.
    low = high = 1.0
    cost_low = cost_high = cost(1.0)
    while cost_high > target:
        low, cost_low, high = high, cost_high, 2 * high
        if high > 1e6:
            raise InputError("epsilon", epsilon, "cannot be reached with noise_multiplier up to 1e6")
        cost_high = cost(high)
    while cost_low <= target:
        high, cost_high, low = low, cost_low, low / 2
        if low < _SMALLEST_NOISE:
            raise InputError("epsilon", epsilon, f"is already met by noise_multiplier={high:g}: ask for less")
        cost_low = cost(low)
    # 2. Interpolate log cost against log noise, which is nearly a line, and aim a little below the target.
    while cost_high < 0.998 * target and high / low > 1.00002:
        share = 0.5
        if cost_high > 0 and math.isfinite(cost_low):
            share = math.log(cost_low / (0.999 * target)) / math.log(cost_low / cost_high)
        middle = round_up(low * (high / low) ** min(max(share, 0.1), 0.9), 5)
        if not low < middle < high:
            break
        if (cost_middle := cost(middle)) > target:
            low, cost_low = middle, cost_middle
        else:
            high, cost_high = middle, cost_middle
    return high


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest count up to `limit` that fits, for a test that holds up to some count and fails past it."""
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    if high > limit:
        if fits(limit):
            return limit
        high = limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def round_up(value: float, digits: int = 4) -> float:
    """`value` rounded up to `digits` significant digits: a displayed epsilon is never below the real one."""
    if value <= 0 or not math.isfinite(value):
        return value
    places = digits - 1 - math.floor(math.log10(value))
    rounded = round(value, places)
    return rounded if rounded >= value else round(rounded + 10.0**-places, places)


@lru_cache(maxsize=4096)
def _epsilon(kinds: tuple[tuple[float, float, int], ...], delta: float) -> float:
    """Composition of (rate, noise, steps) kinds, each (rate, noise) once."""
    if not kinds:
        return 0.0
    lost = _LOST_ONCE + _LOST_PER_STEP * sum(steps for _, _, steps in kinds)
    if delta <= lost or min(noise for _, noise, _ in kinds) < _SMALLEST_NOISE:
        return math.inf
    # T Gaussian steps on all data are one with noise z / sqrt(T) (Dong et al. 2022, Corollary 3.3).
    whole = sum(steps / min(noise, 1e6) ** 2 for rate, noise, steps in kinds if rate == 1.0)
    sampled = [(max(q, _SMALLEST_RATE), min(z, _LARGEST_NOISE), steps) for q, z, steps in kinds if q < 1.0]
    if whole:
        sampled.append((1.0, min(whole**-0.5, _LARGEST_NOISE), 1))
    grid = _grid(sampled)
    parts = [_composed(rate, noise, steps, grid) for rate, noise, steps in sampled]
    total = reduce(lambda left, right: left.compose(right), parts)
    with np.errstate(over="ignore"):
        return float(total.get_epsilon_for_delta(delta - lost))


def _grid(kinds: list[tuple[float, float, int]]) -> float:
    """The spacing of the loss grid: a power of two, so that cached distributions serve growing ledgers."""
    total = sum(steps for _, _, steps in kinds)
    variance = sum(steps * _loss_scale(rate, noise)[0] ** 2 for rate, noise, steps in kinds) / total
    span = max(_loss_scale(rate, noise)[1] for rate, noise, _ in kinds)
    accurate = math.floor(math.log2(math.sqrt(variance) / _GRID_FRACTION))
    affordable = math.ceil(math.log2(span / _MAX_CELLS))
    return max(2.0 ** max(accurate, affordable), _FINEST_GRID)


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


@lru_cache(maxsize=8)
def _composed(rate: float, noise: float, steps: int, grid: float) -> Any:
    step = _single(rate, noise, grid)
    return step.self_compose(steps) if steps > 1 else step


@lru_cache(maxsize=32)
def _single(rate: float, noise: float, grid: float) -> Any:
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=grid, pessimistic_estimate=True
    )


def _real(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(field, value, "must be a finite number")
    return float(value)


def _steps(field: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= MAX_STEPS:
        raise InputError(field, value, f"must be an integer from 1 to {MAX_STEPS}")
    return int(value)


def _delta(value: object) -> float:
    delta = _real("delta", value)
    if not 0 < delta < 1:
        raise InputError("delta", delta, "must lie between 0 and 1")
    return delta


def _epsilon_target(value: object) -> float:
    target = _real("epsilon", value)
    if target < 0:
        raise InputError("epsilon", target, "must be at least 0")
    return target
