"""From an area under the ROC curve to an outcome.

Every finite noise leaves the best test an area above 1/2, and enough cases show it: what counts is by how much. Better
than a coin is said of it from the interval at 99.9% on, since an audit has many views; *found* is what lies halfway
between a coin and certainty or above; what is less is *held*, the noise doing what its own ROC says, and what is more
than that ROC refutes the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..intervals import Array, Estimate
from ..results import Outcome
from .roc import area

SURE = 0.999
TELLING = 0.75
WINS = 0.6
"""An area that counts as winning, where the noise is looked for at which a test starts to."""
_CONTROL = 0.9
COIN = Estimate(value=0.5, low=0.5, high=0.5, n=1, method="exact")


@dataclass(frozen=True)
class Judged:
    """The area with its printed interval, and what it means."""

    value: Estimate
    outcome: Outcome
    reason: str


def judged(
    members: Array, others: Array, *, control: Estimate | None, ceiling: float | None, cut_short: str = ""
) -> Judged:
    """Scores (n,) of members and (m,) of others; `ceiling`: the area that no test of this mechanism can pass."""
    value, sure = area(members, others), area(members, others, level=SURE)
    if ceiling is not None and sure.low > ceiling:
        reason = f"tells more than the noise allows: the 99.9% interval begins at {sure.low:.3f}, above {ceiling:.3f}"
        return Judged(value, "refuted", reason)
    if sure.low > 0.5 and value.value >= TELLING:
        return Judged(value, "found", "")
    if cut_short:
        return Judged(value, "inconclusive", cut_short)
    if control is not None and control.value < _CONTROL:
        reason = f"the control failed: without noise its area is {control.value:.2f}"
        return Judged(value, "inconclusive", reason)
    if sure.low > 0.5:
        reason = f"better than a coin, as the noise allows; from {TELLING} on it counts as found"
        return Judged(value, "held", reason)
    return Judged(value, "not found", "")
