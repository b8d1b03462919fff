"""What an account says of k examples of one person together, where each of its releases is accounted for one.

The neighbours are data sets that differ in k examples of one company. A Poisson batch takes B ~ Bin(k, q) of them,
and together they move a sum by at most B clips: the pair is dominated by N(0, z^2) against the mixture of N(b, z^2)
with the binomial's weights (Schuchardt et al. 2024, section 4). Where every example is in one sum an epoch, k of them
move the sums by at most what k in the same one do. Any other release, and more examples than are composed exactly,
are converted: (e, d) for one example is (k e, d (exp(k e) - 1) / (exp(e) - 1)) for k (Dwork and Roth 2014, theorem
2.2, with delta), at the d that leaves the wanted one over.
"""

import math
from functools import lru_cache

from dp_accounting import dp_event, pld
from scipy.stats import binom

from .accounting import epsilon
from .events import EpochGaussian, Event, GaussianSteps, count
from .rounding import with_slack

_CELL = 5e-3  # of a privacy loss; rounded up, so that a coarser one costs epsilon and never privacy
_MOST = (
    8  # examples of one person that are composed exactly: the loss, and so the time, grows with their square
)
_LARGEST = 60.0  # epsilon of one example, beyond which a group's is of no use to anybody
_TRIES = 6


@lru_cache(maxsize=64)
def group_epsilon(event: Event, examples: int, delta: float) -> float:
    """The epsilon at `delta` of `event` for so many examples of one person in one company; inf where none is known.

    Raises:
        InputError: `examples` is not from 1 to 1,000,000, or delta is not in (0, 1).
    """
    k = count("examples", examples)
    one = epsilon([event], delta)
    if k == 1 or not one <= _LARGEST:
        return one if k == 1 else math.inf
    whole = _together(event, k)
    if whole is None:
        return _converted(event, k, delta)
    accountant = pld.PLDAccountant(value_discretization_interval=_CELL)
    accountant.compose(whole)
    return with_slack(lambda d: float(accountant.get_epsilon(d)), event.values, delta)


def _together(event: Event, k: int) -> dp_event.DpEvent | None:
    """The release of all k against none of them; None where it is not composed exactly."""
    if isinstance(event, EpochGaussian):
        step = dp_event.GaussianDpEvent(event.noise_multiplier / k)
        return dp_event.SelfComposedDpEvent(step, event.epochs)
    if isinstance(event, GaussianSteps) and k <= _MOST:
        taken = range(k + 1)
        mixture = dp_event.MixtureOfGaussiansDpEvent(
            event.noise_multiplier,
            [float(n) for n in taken],
            [float(binom.pmf(n, k, event.sampling_rate)) for n in taken],
        )
        return dp_event.SelfComposedDpEvent(mixture, event.steps)
    return None


def _converted(event: Event, k: int, delta: float) -> float:
    """By the definition alone, from an account of one example at a smaller delta."""
    d = delta / k
    for _ in range(_TRIES):
        e = epsilon([event], d)
        if not k * e < 700:
            return math.inf
        needed = d * math.expm1(k * e) / math.expm1(e) if e > 0 else d * k
        if needed <= delta:
            return k * e
        d = 0.5 * delta * math.expm1(e) / math.expm1(k * e)
    return math.inf
