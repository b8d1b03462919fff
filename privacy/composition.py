"""How the privacy losses of a company's runs compose, when each run may be chosen after seeing the others' releases.

Purpose: a ledger's statement must hold against a coordinator who chooses the next plan by the last one's releases.
Within a run nothing is chosen: its terms (one event for every release, and the largest number of releases) are
pinned before the first, so its account is that of one fixed list (`accounting`), which holds for adaptive inputs
(Zhu, Dong and Wang 2022, Theorem 10, https://arxiv.org/abs/2106.08567). A run that stops early releases a part of
it. Across runs a ledger has one of two rules, chosen when it is created.

**runs.** Epsilon is the sum of the runs' epsilons. The k-th run that begins is accounted whole, whether or not it
ends, at a share of delta that depends on k alone:

    delta_1 = 0.95 delta,    delta_k = 0.05 delta / (k (k - 1)),    which add up to less than delta.

With adaptively chosen terms this is basic composition, which is a filter and an odometer (Rogers, Roth, Ullman
and Vadhan 2016, https://arxiv.org/abs/1605.08294): let the rest be (e, d) for whatever a first (e', d') run
returned; with f(y) = min(1, exp(e) Q[rest in S | y]),

    P[S] <= E_P[f(y)] + d <= exp(e') E_Q[f(y)] + d' + d <= exp(e' + e) Q[S] + d' + d,

and by induction from the last run the whole is (sum of e_k, sum of d_k). Runs may overlap in time: what is a filter
for one after the other is one for interleaved runs (Haney, Shoemate, Tian, Vadhan, Vyrros, Xu and Zhang 2023,
https://arxiv.org/abs/2309.05901).

**renyi.** Every release adds its Renyi divergence at one order, fixed when the ledger is created, and their sum is
converted to an epsilon. Stopped before it passes a bound, the sum bounds the divergence of all releases together, for
any choice of releases (the filter of Feldman and Zrnic 2021, https://arxiv.org/abs/2008.11193). What is proven is
the ceiling; a figure below it is the filter's current state. Nothing is charged in advance. Many small runs cost
less than by rule `runs`, a single run costs more. What floating point may leak is a term of the loss like the others:
with a slack s (`rounding`) the machine's laws are P~ <= exp(s) P and Q~ >= exp(-s) Q, so at order a

    E_Q~[(P~/Q~)^a] <= E_Q[(P/Q)^a exp((2 a - 1) s)],

which adds (2 a - 1) / (a - 1) s to the divergence, whenever the filter stops. That is the same as 2 s more epsilon
and a delta divided by exp(s). Its reserve of delta and an epsilon of at most 100 are fixed beforehand.

Rates are rounded up and noise down before any account, so that plans which differ in a last digit are of one
kind, and a ledger has at most 32 runs, or kinds of release. A charge composes one distribution, for a run that it
begins: the cost of the others is stored in the hash chain (`ledger`).
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Protocol

from ..errors import InputError
from .accounting import Account, accountant_of, epsilon, releases_within, round_up
from .events import (
    UNIT,
    Event,
    GaussianEvent,
    SkellamSteps,
    TruncatedGaussianSteps,
    check_event,
    count,
    is_unit,
)
from .rdp import ORDERS, epsilon_at, rdp_of
from .rounding import RESERVE, on_machine, slack

RUNS, RENYI = "runs", "renyi"
COMPOSITIONS = (RUNS, RENYI)
MAX_KINDS = 32
_FIRST = 0.95
# Significant digits that a rate, a sensitivity or a noise keeps in an account.
_UP = {"sampling_rate": 4, "l2": 6, "l1": 6}
_DOWN = {"noise_multiplier": 5, "variance": 6}
# The share of delta, in a Renyi ledger, for failing sensitivity bounds of Skellam steps and for floating point.
_RESERVED = 2.0**-7
# Of the delta that floating point leaves, the share that converts the divergence.
_CONVERTS = (1 - _RESERVED) / (1 - RESERVE)
_LARGEST_EPSILON = 100.0
# Ledgers from before compositions existed continue at the order for this ceiling.
_USUAL_CEILING = 8.0


@dataclass(frozen=True)
class Terms:
    """What a run is pinned to: at most `releases` releases, each of them an `event`, which bounds what is told of one
    `unit`.

    Raises:
        InputError: `event` is of no known kind, `unit` is none, or `releases` is not from 1 to MAX_STEPS.
    """

    event: Event
    releases: int
    unit: str = UNIT

    def __post_init__(self) -> None:
        check_event(self.event)
        if not is_unit(self.unit):
            raise InputError("unit", self.unit, f"expected {UNIT!r}, or a group's")
        object.__setattr__(self, "releases", count("releases", self.releases))

    @property
    def whole(self) -> Event:
        """The run as one event; InputError past MAX_STEPS."""
        return self.event.times(self.releases)

    def __str__(self) -> str:
        of = "" if self.unit == UNIT else f", of {self.unit}"
        return f"{self.releases} releases of {self.event.to_json()}{of}"


class Run(NamedTuple):
    """A run that has begun, and how many of its releases were made."""

    terms: Terms
    made: int


class Composition(Protocol):
    """A rule by which runs compose; `runs` in the order in which they began."""

    @property
    def name(self) -> str: ...
    @property
    def delta(self) -> float: ...
    @property
    def order(self) -> float | None: ...
    def epsilon(self, runs: Sequence[Run]) -> float:
        """The cost of all together; inf where no finite figure is known."""
        ...

    def further(self, before: float, runs: Sequence[Run], terms: Terms, made: int) -> float:
        """The cost with one more run, of which `made` releases were made; `before` is the epsilon without it."""
        ...

    def accountants(self, runs: Sequence[Run]) -> str: ...
    def full(self, runs: Sequence[Run], terms: Terms) -> bool:
        """Whether a run of these terms would be one too many."""
        ...


@dataclass(frozen=True)
class BasicComposition:
    """Rule `runs`."""

    delta: float
    name: str = RUNS
    order: None = None

    def epsilon(self, runs: Sequence[Run]) -> float:
        total = 0.0
        for k, run in enumerate(runs):
            total = self.further(total, runs[:k], run.terms, run.made)
        return total

    def further(self, before: float, runs: Sequence[Run], terms: Terms, made: int) -> float:
        return before + run_epsilon(terms.whole, self.delta, len(runs) + 1)

    def accountants(self, runs: Sequence[Run]) -> str:
        return _joined(accountant_of([run.terms.event]) for run in runs)

    def full(self, runs: Sequence[Run], terms: Terms) -> bool:
        return len(runs) >= MAX_KINDS

    def __str__(self) -> str:
        return "sum over runs, each whole and at its share of delta"


@dataclass(frozen=True)
class RenyiFilter:
    """Rule `renyi`, at one of the ORDERS of `rdp`."""

    delta: float
    order: float
    name: str = RENYI

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise InputError("order", self.order, "must be one of the orders of the account")

    def epsilon(self, runs: Sequence[Run]) -> float:
        counts: Counter[Event] = Counter()
        for terms, made in runs:
            counts[_kind(terms.event)] += made * terms.event.steps
        if not counts:
            return 0.0
        if any(isinstance(step, TruncatedGaussianSteps) for step in counts):
            return math.inf  # no divergence is known for capped batches
        failing = sum(n * step.beta for step, n in counts.items() if isinstance(step, SkellamSteps))
        divergence = math.fsum(
            n * float(rdp_of(step)[ORDERS.index(self.order)]) for step, n in counts.items()
        )

        def of_real_noise(delta: float) -> float:
            if failing > (1 - _CONVERTS) * delta:
                return math.inf
            return epsilon_at(self.order, divergence, _CONVERTS * delta)

        values = sum(made * terms.event.values for terms, made in runs)
        s = slack(values, _LARGEST_EPSILON, self.delta) if values else 0.0
        found = on_machine(of_real_noise, s, self.delta)
        return found if found <= _LARGEST_EPSILON else math.inf

    def further(self, before: float, runs: Sequence[Run], terms: Terms, made: int) -> float:
        return self.epsilon([*runs, Run(terms, made)])

    def accountants(self, runs: Sequence[Run]) -> str:
        return f"RDP at order {self.order:g}"

    def full(self, runs: Sequence[Run], terms: Terms) -> bool:
        kinds = {_kind(run.terms.event) for run in runs}
        return _kind(terms.event) not in kinds and len(kinds) >= MAX_KINDS

    def __str__(self) -> str:
        return f"Renyi filter at order {self.order:g}, release by release"


def composition(name: str, delta: float, order: float | None = None) -> Composition:
    """The rule of that name.

    Raises:
        InputError: there is no such rule, or its order is missing or is not of the account.
    """
    if name == RUNS and order is None:
        return BasicComposition(delta)
    if name == RENYI and order is not None:
        return RenyiFilter(delta, order)
    raise InputError("composition", name, f"must be one of {COMPOSITIONS}, the second with an order")


def fitting(
    rule: Composition, runs: Sequence[Run], event: Event, ceiling: float, before: float | None = None
) -> int:
    """How many releases like `event`, as one run, fit under the ceiling after `runs`, which cost `before`."""
    spent = rule.epsilon(runs) if before is None else before

    def cost(whole: Event) -> float:
        return rule.further(spent, runs, Terms(whole, 1), 1)

    return 0 if rule.full(runs, Terms(event, 1)) else releases_within(ceiling, event, cost)


def order_for(ceiling: float = _USUAL_CEILING, delta: float = 1e-5) -> float:
    """The order at which most Gaussian releases fit under the ceiling; where none fits, that for a ceiling of 8."""

    def room(order: float) -> float:
        return (ceiling - epsilon_at(order, 0.0, (1 - _RESERVED) * delta)) / order

    best = max(ORDERS, key=room)
    return best if room(best) > 0 else order_for(_USUAL_CEILING, max(delta, 1e-100))


def share(k: int) -> float:
    """The share of delta that the k-th run of a ledger has, from 1."""
    return _FIRST if k == 1 else (1 - _FIRST) / (k * (k - 1))


def run_epsilon(whole: Event, delta: float, k: int = 1) -> float:
    """The cost of a ledger's k-th run, given as one event, at the ledger's `delta`."""
    return epsilon([rounded(whole)], share(k) * delta)


def in_a_fresh_ledger(delta: float) -> Account:
    """The account of a company's first run, for which plans are calibrated."""
    return lambda whole: run_epsilon(whole, delta)


def rounded(event: Event) -> Event:
    """The event with few digits of rate, sensitivity and noise, rounded towards a higher cost."""
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    up = {name: round_up(values[name], digits) for name, digits in _UP.items() if name in values}
    down = {name: round_down(values[name], digits) for name, digits in _DOWN.items() if name in values}
    return replace(event, **up, **down)


def _kind(event: Event) -> Event:
    """The key of releases with equal divergence: the step, without its number of values."""
    step = rounded(event).step
    return replace(step, dimension=None) if isinstance(step, GaussianEvent) else step


def round_down(value: float, digits: int) -> float:
    """A positive value with so many significant digits, never above it and never 0."""
    places = digits - 1 - math.floor(math.log10(value))
    found = round(value, places)
    found = found if found <= value else round(found - 10.0**-places, places)
    # Beyond the reach of `round` it stays what it was.
    return found if 0 < found <= value else value


def _joined(names: Iterable[str]) -> str:
    return " + ".join(sorted(set(names))) or "none"
