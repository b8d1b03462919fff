"""What no attack can pass, whatever it tries: read off the trade-off function of what is released.

An attack that decides something about an example succeeds with probability k at best without the release (the best
blind guess). Were the example replaced by nothing, the release would be no more help than that; so the attack is a
test with a false alarm rate of k, and succeeds with probability at most 1 - f(k):

- of any guess, such as an attribute's or a token's (Kaissis et al. 2023, "Bounding data reconstruction attacks with
  the hypothesis testing interpretation of differential privacy"; Kulynych et al. 2024, arXiv 2407.02191);
- of a reconstruction within a given error, k being the chance of the best guess from the prior (Hayes, Balle,
  Mahloujifar 2023, "Bounding training data reconstruction in DP-SGD", theorem 2);
- of a membership test at false alarm rate k, whose area under the curve is at most that of 1 - f.

exp(epsilon) k + delta says the same from one point of f, and far more: 20% instead of 5.4% for k = 1% at epsilon 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..blocks.taps import Field
from ..errors import InputError
from ..privacy.events import Event
from ..protocol.release import planned_size, release_event
from .closeness import exact_radius
from .intervals import Estimate, proportion
from .subject import Subject
from .tradeoff import GaussianTradeOff, TradeOff, tradeoff, without_sampling

_MIDPOINTS = 20_000
_SAMPLE = 2000  # examples of which the best blind guess is estimated


def ceiling(promised: TradeOff, blind: float | Estimate) -> float:
    """The largest success of any attack where the best blind guess succeeds with probability `blind`; of an estimate
    of that, its upper end is taken.

    Raises:
        InputError: that is no probability.
    """
    k = blind.high if isinstance(blind, Estimate) else blind
    if not 0 <= k <= 1:
        raise InputError("blind", k, "expected a probability")
    return promised.hits(k)


def auc_ceiling(promised: TradeOff) -> float:
    """The largest area under the curve of any membership test: the integral of 1 - f, from above.

    By the midpoint rule, which for a concave curve gives no less than the integral.
    """
    middle = (np.arange(_MIDPOINTS) + 0.5) / _MIDPOINTS
    return min(1.0, float(np.mean([promised.hits(float(x)) for x in middle])))


def event_of_release(subject: Subject, block: int) -> Event:
    """What a company is charged for one release of this block. Raises: InputError for a plan without noise."""
    plan = subject.plan
    if not plan.private:
        raise InputError("noise_multiplier", 0.0, "nothing bounds what a release without noise gives away")
    return release_event(plan, planned_size(plan), len(subject.cohort(block)) if plan.secure_step else None)


def releases_of(subject: Subject, block: int | None) -> int:
    """How many releases of one block, or of all, a company makes in the whole run at most."""
    whole, blocks = subject.plan.most_releases, len(subject.plan.trained_blocks)
    if block is not None and subject.plan.drawn is not None:
        # Chance may draw a company whenever it is one block's turn.
        return subject.trainings(block, subject.plan.training.rounds + subject.plan.training.reserve)
    # By turns over the blocks, so that the first ones may get one more.
    return whole if block is None else -(-whole // blocks)


def tradeoff_of(subject: Subject, block: int) -> TradeOff:
    """Of one release to an adversary that knows that the example took part in every step of it."""
    return tradeoff(without_sampling(event_of_release(subject, block)))


def tradeoff_of_run(subject: Subject, block: int | None = None) -> TradeOff:
    """Of all releases of a block in the whole run, or of all blocks, sampled as accounted: what the ledger says."""
    one = subject.plan.trained_blocks[0] if block is None else block
    return tradeoff(event_of_release(subject, one).times(releases_of(subject, block)))


def densest(values: Tensor, radius: float) -> Estimate:
    """The chance of the best blind guess: the largest share of examples that lie within `radius` of any one point.

    values (n, d), independent. A ball that holds examples lies within twice its radius of each of them, so no ball
    holds more of the n than the fullest ball of twice the radius around one of them: the interval is of that count.
    """
    flat = values.reshape(len(values), -1).double()
    near = 0
    for part in flat.split(256):
        near = max(near, int((torch.cdist(part, flat) <= 2 * radius).sum(1).max()))
    return proportion(near, len(flat))


def most_frequent(parts: list[Tensor]) -> Estimate:
    """The chance of the best blind guess of a label for somebody who knows each company's most frequent one; parts
    (n, ...) of the companies, whole numbers, column by column."""
    right = total = 0
    for part in parts:
        for column in part.reshape(len(part), -1).T:
            right += int(torch.bincount(column.long()).max())
            total += len(column)
    return proportion(right, total)


@dataclass(frozen=True)
class Ceilings:
    """What no attack on one release of a block can pass, for every field of an example.

    Other examples may be unknown too: for each of them alone the bound holds whatever the others are.
    """

    subject: Subject
    block: int
    promised: TradeOff
    _known: dict[tuple[str, str], Estimate] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, subject: Subject, block: int, companies: int = 1) -> Ceilings | None:
        """Of one company's release, or of the sum of so many with the noise of all; none without noise."""
        if not subject.plan.private:
            return None
        promised = tradeoff_of(subject, block)
        # Shares of one noise are of the whole sum already.
        if isinstance(promised, GaussianTradeOff) and not subject.plan.secure_step:
            promised = GaussianTradeOff(promised.mu / math.sqrt(companies))
        return cls(subject, block, promised)

    def exact(self, what: Field, guesses: int = 1) -> float:
        """Of rebuilding a real field exactly, with so many guesses."""
        return self._passed(("exact", what.name), lambda: self._densest(what), guesses)

    def read_off(self, what: Field) -> float:
        """Of reading off a label, a code or a token."""
        return self._passed(("read off", what.name), lambda: most_frequent(self._parts(what)), 1)

    def _passed(self, key: tuple[str, str], make: Callable[[], Estimate], guesses: int) -> float:
        if key not in self._known:
            self._known[key] = make()
        return ceiling(self.promised, min(1.0, guesses * self._known[key].high))

    def _parts(self, what: Field) -> list[Tensor]:
        problem = self.subject.problem(self.block)
        return [problem.values_of(each)[what.name] for each in self.subject.private.values() if len(each)]

    def _densest(self, what: Field) -> Estimate:
        whole = torch.cat(self._parts(what))
        order = torch.randperm(len(whole), generator=self.subject.generator("densest", what.name))
        sample = whole[order[:_SAMPLE]]
        return densest(sample, exact_radius(what, sample))
