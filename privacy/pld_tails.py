"""Epsilon for many deltas from one composed privacy loss distribution.

The library adds up the tail of the distribution anew, in Python, for each delta: with 160 deltas for a trade-off
function, and dozens of these in an audit, that was a tenth of its time. Here the tail is added up once, in the same
order, and a delta is looked up in it.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from dp_accounting.pld.pld_pmf import DensePLDPmf

Array = npt.NDArray[np.float64]


class Tail(NamedTuple):
    """Losses from the largest to 0, (n,); what they and all larger ones weigh, `upper`, and with exp(-loss), `lower`.

    Of the loss of P against Q these are P's and Q's probabilities of a loss at least so large.
    """

    infinity: float
    losses: Array
    upper: Array
    lower: Array

    @classmethod
    def of(cls, pmf: DensePLDPmf) -> "Tail":
        first, count = pmf._lower_loss, len(pmf._probs)
        least = max(0, -first)  # smaller losses add to no epsilon above 0
        steps = np.arange(first + count - 1, first + least - 1, -1)
        losses = steps * pmf._discretization  # exact: the grid is a power of two
        probabilities = pmf._probs[least:][::-1]
        begun = np.concatenate([[pmf._infinity_mass], probabilities])
        return cls(
            pmf._infinity_mass, losses, np.cumsum(begun)[1:], np.cumsum(np.exp(-losses) * probabilities)
        )

    def epsilon(self, delta: float) -> float:
        """The smallest epsilon >= 0 with P[S] - exp(epsilon) Q[S] <= delta for all S."""
        if self.infinity > delta:
            return math.inf
        n = len(self.losses)
        reached = int(np.searchsorted(self.upper, delta))  # the first loss that brings the tail to delta
        if reached == n:
            return 0.0
        if self.lower[reached] == 0:  # exp(-loss) is no number any more
            return float(self.losses[reached])
        # The least k such that losses k and below are not above the epsilon of the tail above k.
        low, high = reached, n
        while high - low > 1:
            middle = (low + high) // 2
            if self._solved(middle - 1, delta) >= self.losses[middle]:
                high = middle
            else:
                low = middle
        return max(0.0, self._solved(high - 1, delta))

    def _solved(self, last: int, delta: float) -> float:
        """The epsilon that fits the tail up to and with `last`."""
        above = float(self.upper[last]) - delta
        return math.log(above / float(self.lower[last])) if above > 0 else -math.inf


def tails_of(total: Any) -> Sequence[Tail]:
    """Of a composed distribution of the library: where an example is removed, and where that differs where one is
    added."""
    sides = [total._pmf_remove] if total._symmetric else [total._pmf_remove, total._pmf_add]
    return [Tail.of(side.to_dense_pmf()) for side in sides]
