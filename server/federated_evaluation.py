"""The model's quality on companies' held-out examples: a secure sum of scores and counts, opened with their noise.

What a company's examples are worth nobody learns; of all together the sum, whose noise the interval covers. The
interval for q = (sum of scores) / (number of examples) is Fieller's (Biometrika 41, 1954): all q for which

    |S - q N| <= 1.96 sqrt(s^2 (1 + q^2) + N q (1 - q)),

S and N the opened sums and s the noise in each. The last term is the spread of a mean of N scores in [0, 1]. Where N
does not stand out of the noise there is no interval, and no quality is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..blocks import digest, metric_of
from ..blocks.state import State
from ..errors import ProtocolError
from ..privacy.secure_aggregation import Session
from ..protocol.evaluation import (
    BITS,
    Vector,
    cells,
    decoded,
    deviation,
    evaluation_label,
    length,
    settings_of,
)
from ..settings import Plan
from .cohort import Cohort
from .round import threshold_of
from .secure_sum import Absences, SecureSum

_NORMAL = 1.96  # of a 95% interval
# Deviations by which a count has to stand out of the noise.
_CLEAR = 5.0


@dataclass(frozen=True)
class Quality:
    """`value` with its 95% interval, none where there are too few examples.

    `examples`, `scores`: their number and the sum of their scores, which lie between 0 and 1, each with noise.
    """

    examples: float
    scores: float
    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """After one round. `status`: "done", or the code that ended it; `deviation`: of the noise in each opened sum."""

    metric: str
    status: str = "done"
    quality: Quality | None = None
    by_class: tuple[Quality, ...] = ()
    deviation: float = 0.0
    survivors: tuple[str, ...] = ()
    absent: dict[str, tuple[str, str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a line of metrics has it."""
        found: dict[str, Any] = {"metric": self.metric, "status": self.status}
        if self.quality is not None:
            found |= vars(self.quality) | {"deviation": self.deviation, "survivors": list(self.survivors)}
        if self.by_class:
            found["by_class"] = [vars(each) for each in self.by_class]
        return found | {"absent": self.absent}


def evaluate(
    round_: int,
    groups: Sequence[tuple[str, ...]],
    blocks: Sequence[State],
    cohort: Cohort,
    plan: Plan,
    attempt: str = "",
) -> Evaluation:
    """Ask the companies what the model of these blocks is worth on their held-out examples.

    `groups`: the companies that sum together, as in the run's trainings; the groups' sums are added. A group of which
    too few answer adds nothing.
    """
    metric, absences = metric_of(plan.model).name, Absences()
    states = dict(enumerate(blocks))
    total, variance, survivors = np.zeros(length(plan)), 0.0, list[str]()
    code = ""
    for number, companies in enumerate(groups):
        session = Session(
            run=plan.run,
            round=round_,
            label=evaluation_label(attempt),
            model_digest=digest(*states.values()),
            settings_digest=cohort.settings_digest,
            cohort=companies,
            threshold=threshold_of(plan, len(companies)),
            length=length(plan),
            bits=BITS,
        )
        try:
            secure_sum = SecureSum(session, cohort, f"round-{round_}-evaluation-{number}", absences)
            adverts = secure_sum.keys()
            answered = secure_sum.evaluate(states, adverts)
            residues, summed = secure_sum.unmask(secure_sum.confirm(answered))
        except ProtocolError as error:
            code = error.code
            continue
        total += decoded(plan, len(companies), residues)
        variance += deviation(plan, len(companies), len(summed)) ** 2
        survivors += summed
    if not survivors:
        return Evaluation(metric=metric, status=code, absent=absences.why)
    return judged(plan, total, math.sqrt(variance), metric, tuple(sorted(survivors)), absences.why)


def judged(
    plan: Plan,
    total: Vector,
    noise: float,
    metric: str,
    survivors: tuple[str, ...],
    absent: dict[str, tuple[str, str]],
) -> Evaluation:
    """What the opened sums say."""
    parts, largest = cells(plan), settings_of(plan).range()
    scores, counts = total[:parts], total[parts:]
    by_class = tuple(
        quality_of(float(s), float(n), noise, largest) for s, n in zip(scores, counts, strict=True)
    )
    # The sums over all classes have the noise of all.
    whole = quality_of(float(scores.sum()), float(counts.sum()), noise * math.sqrt(parts), largest)
    return Evaluation(
        metric=metric,
        quality=whole,
        by_class=by_class if parts > 1 else (),
        deviation=noise,
        survivors=survivors,
        absent=absent,
    )


def quality_of(score: float, count: float, noise: float, largest: float = 1.0) -> Quality:
    """The ratio of two sums, each with noise of this deviation, times `largest`, and its 95% interval."""
    if not count >= _CLEAR * noise:
        return Quality(count, score)
    # The bounds are where the two sides of the formula above are equal: a q^2 - 2 b q + c = 0.
    z2, s2 = _NORMAL**2, noise**2
    a, b, c = count**2 + z2 * (count - s2), score * count + z2 * count / 2, score**2 - z2 * s2
    root = math.sqrt(max(b * b - a * c, 0.0))
    value, low, high = (
        min(max(q, 0.0), 1.0) * largest for q in (score / count, (b - root) / a, (b + root) / a)
    )
    return Quality(count, score, value, low, high)
