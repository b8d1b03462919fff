"""From scores to an outcome.

*Found* is what is better than a coin by an interval at 99.9%, since an audit has many views; how much of it is too
much is the gate's to say, as every finite noise allows some. What passes the noise's own ROC refutes the noise: an
example whose gradient is as long as the clip comes up to it, so that this takes an interval that no view of an honest
run is outside of in ten thousand audits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..intervals import Array, Estimate
from ..results import FAILED_CONTROL, Outcome
from ..roc import auc

SURE = 0.999
REFUTES = 0.99999
_POWER = 0.7
WINS = 0.1
"""An area so far above 1/2 counts as winning, where the noise is looked for at which a test starts to."""
COIN = Estimate(value=0.5, low=0.5, high=0.5, n=1, method="exact")


@dataclass(frozen=True)
class Judged:
    """The area with its printed interval, and what it means."""

    value: Estimate
    outcome: Outcome
    reason: str


def judged(
    members: Array,
    others: Array,
    *,
    control: Estimate | None,
    ceiling: float | None,
    cut_short: str = "",
    floor: float = 0.5,
) -> Judged:
    """Scores (n,) of members and (m,) of others; `ceiling`: the area that no test of this mechanism can pass;
    `floor`: that of a guess without the release."""
    value, sure = auc(members, others), auc(members, others, level=SURE)
    least = auc(members, others, level=REFUTES).low
    if ceiling is not None and least > ceiling:
        begins = f"the {100 * REFUTES:g}% interval begins at {least:.3f}, above {ceiling:.3f}"
        return Judged(value, "refuted", f"tells more than the noise allows: {begins}")
    if sure.low > floor:
        return Judged(value, "found", "")
    if cut_short:
        return Judged(value, "inconclusive", cut_short)
    if control is not None and control.low <= 0.5:
        reason = f"{FAILED_CONTROL}: its area is {control.value:.2f}"
        return Judged(value, "inconclusive", reason)
    return Judged(value, "not found", "")


def powerless(found: Judged, control: Estimate, hides: str) -> Judged:
    """Not applicable, where the control failed and its interval shows that this is no want of cases: on this block
    the test tells nothing without noise either. `hides`: what hides an example then, in words."""
    if not found.reason.startswith(FAILED_CONTROL) or control.high >= _POWER:
        return found
    why = f"without noise too {hides}: the area is {control.value:.2f}, at most {control.high:.2f}"
    return replace(found, outcome="not applicable", reason=why)


def left_out(found: Judged, rate: float) -> Judged:
    """The same where a member is in the release with this probability only, and else leaves nothing."""
    value = found.value
    low, area, high = (0.5 + rate * (each - 0.5) for each in (value.low, value.value, value.high))
    return replace(found, value=value.model_copy(update={"low": low, "value": area, "high": high}))
