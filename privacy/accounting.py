"""What a list of releases costs, and how much noise or how many steps a target allows.

Purpose: one accountant for planning, calibration and the ledger. A list whose releases all have a privacy loss
distribution is accounted by it (`pld`), any other by Renyi differential privacy (`rdp`), the whole list by one
of the two. Both are upper bounds, and displayed epsilons are rounded up. Accounts by a central limit (GDP)
under-report and are not offered. Every figure allows for what floating point may leak (`rounding`).

Releases of different adjacency do not compose here: adding or removing an example and replacing one are
different promises.

**A list is fixed beforehand.** Inputs of a release (the model) may depend on earlier ones, its parameters (rate,
noise, number of steps) may not: where plans were chosen adaptively, the account of the list that happened bounds
nothing. `composition` says how such plans add up; it asks here for one plan at a time.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from ..errors import InputError
from .adversaries import ANYONE, against, seen_by_company
from .events import (
    ADD_REMOVE,
    MAX_STEPS,
    SMALLEST_NOISE,
    UNIT,
    Event,
    GaussianSteps,
    TruncatedGaussianSteps,
    check_event,
    real,
)
from .pld import EVENTS as PLD_EVENTS
from .pld import pld_epsilon
from .rdp import rdp_epsilon
from .rounding import with_slack

PLD, RDP = "PLD", "RDP"
# The accountant's version. The first number rises with any change to how fedblocks accounts an event.
ACCOUNT = f"1/{version('dp-accounting')}"
ONE_LIST = "one list of releases, fixed beforehand"
_MOST_NOISE = 1e6

Account = Callable[[Event], float]


@dataclass(frozen=True)
class Guarantee:
    """An epsilon with everything that gives it a meaning.

    `epsilon_against_company` is what holds against a company that takes part and knows its own share of the noise; it
    is above `epsilon` where that counts on companies' shares and tolerates no colluder (`adversaries`).
    """

    epsilon: float
    delta: float
    mechanism: str
    unit: str = UNIT
    adjacency: str = ADD_REMOVE
    accountant: str = PLD
    composition: str = ONE_LIST
    against: str = ANYONE
    epsilon_against_company: float = 0.0

    def __post_init__(self) -> None:
        # A company that takes part sees at least what everybody sees.
        object.__setattr__(self, "epsilon_against_company", max(self.epsilon, self.epsilon_against_company))

    def __str__(self) -> str:
        company = ""
        if self.epsilon_against_company > self.epsilon:
            company = f"; against a company that takes part: epsilon={shown(self.epsilon_against_company)}"
        return (
            f"epsilon={shown(self.epsilon)} at delta={self.delta:g} ({self.mechanism}; unit: {self.unit}; "
            f"adjacency: {self.adjacency}; accountant: {self.accountant}; composition: {self.composition}; "
            f"against: {self.against}{company})"
        )


def epsilon(events: Iterable[Event], delta: float) -> float:
    """The epsilon of all `events` together at `delta`: an upper bound; 0.0 for no events, inf if none is known.

    eps(delta) = min {e >= 0: P[M(D) in S] - exp(e) P[M(D') in S] <= delta for all S and adjacent D, D'}

    Raises:
        InputError: delta is not in (0, 1), or the releases do not compose: they are of two adjacencies, or some have
            capped batches beside others that only RDP can account.
    """
    listed, delta = list(events), checked_delta(delta)
    account = pld_epsilon if accountant_of(listed) == PLD else rdp_epsilon
    return with_slack(lambda d: account(listed, d), sum(event.values for event in listed), delta)


def guarantee(events: Iterable[Event], delta: float, adjacency: str = ADD_REMOVE) -> Guarantee:
    """As `epsilon`, errors included, with its meaning; `adjacency` is that of an empty list."""
    listed = list(events)
    mechanisms = dict.fromkeys(event.mechanism for event in listed)
    return Guarantee(
        epsilon(listed, delta),
        delta,
        " + ".join(mechanisms) or "no release",
        adjacency=listed[0].adjacency if listed else adjacency,
        accountant=accountant_of(listed),
        against=against(listed),
        epsilon_against_company=epsilon(map(seen_by_company, listed), delta),
    )


def accountant_of(events: Sequence[Event]) -> str:
    """PLD or RDP, whichever accounts the list.

    Raises:
        InputError: neither does.
    """
    kinds = {type(check_event(event)) for event in events}
    if len({kind.adjacency for kind in kinds}) > 1:
        raise InputError("events", _names(kinds), "have different adjacency: their epsilons do not compose")
    if kinds <= set(PLD_EVENTS):
        return PLD
    if TruncatedGaussianSteps in kinds:
        raise InputError("events", _names(kinds), "need RDP, which is not known for capped batches")
    return RDP


def releases_within(epsilon_ceiling: float, event: Event, account: Account) -> int:
    """How many releases like `event` fit under the ceiling, at most MAX_STEPS steps; `account` gives the cost of
    several as one event.

    releases_within(8.0, event, lambda whole: epsilon([whole], 1e-5))
    """
    ceiling = _epsilon_target(epsilon_ceiling)
    return largest(lambda count: account(event.times(count)) <= ceiling, MAX_STEPS // event.steps)


def noise_multiplier_for(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The least noise with which `steps` Poisson-sampled Gaussian steps cost at most `epsilon`; see `calibrate`."""

    def event_at(noise: float) -> GaussianSteps:
        return GaussianSteps(sampling_rate=sampling_rate, noise_multiplier=noise, steps=steps)

    return calibrate(event_at, epsilon, at(delta))


def at(delta: float) -> Account:
    """The account of a single event at `delta`."""
    delta = checked_delta(delta)
    return lambda event: epsilon([event], delta)


def calibrate(event_at: Callable[[float], Event], epsilon: float, account: Account) -> float:
    """The least noise (five digits, rounded up) with which `event_at(noise)` costs at most `epsilon` by `account`.

    More noise must cost less. The result costs between 0.99 and 1 times the target.

    calibrate(lambda noise: EpochGaussian(noise_multiplier=noise, epochs=20), 3.0, at(delta=1e-5))

    Raises:
        InputError: no noise_multiplier from 0.01 to 1e6 costs about `epsilon`.
    """
    target = _epsilon_target(epsilon)
    if target == 0:
        raise InputError("epsilon", epsilon, "must be above 0: no finite noise reaches 0")

    def cost(noise: float) -> float:
        return account(event_at(noise))

    # 1. Bracket: `low` costs more than the target, `high` at most the target.
    low = high = 1.0
    cost_low = cost_high = cost(1.0)
    while cost_high > target:
        low, cost_low, high = high, cost_high, 2 * high
        if high > _MOST_NOISE:
            raise InputError("epsilon", epsilon, "cannot be reached with noise_multiplier up to 1e6")
        cost_high = cost(high)
    while cost_low <= target:
        high, cost_high, low = low, cost_low, low / 2
        if low < SMALLEST_NOISE:
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
    """The largest count from 0 to `limit` that fits; `fits` must hold up to some count and fail above it."""
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


def finite(value: float) -> float | None:
    """`value` for JSON, which has no infinity: None where no finite epsilon is known."""
    return value if math.isfinite(value) else None


def shown(epsilon: float | None) -> str:
    """An epsilon as text: rounded up, or "infinite"."""
    return "infinite" if epsilon is None or not math.isfinite(epsilon) else str(round_up(epsilon))


def _names(kinds: Iterable[type[Event]]) -> str:
    return ", ".join(sorted(kind.__name__ for kind in kinds))


def checked_delta(value: object) -> float:
    delta = real("delta", value)
    if not 0 < delta < 1:
        raise InputError("delta", delta, "must lie between 0 and 1")
    return delta


def _epsilon_target(value: object) -> float:
    target = real("epsilon", value)
    if target < 0:
        raise InputError("epsilon", target, "must be at least 0")
    return target
