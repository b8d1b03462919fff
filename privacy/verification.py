"""A ledger's figures checked again: by the accountant that wrote them and by an independent one.

Purpose: an error in one accountant shows in the other. Every row's epsilons are recomputed from its events by the
ledger's composition (dp-accounting), and every row is compared with what its run is pinned to. A few rows, always the
last, must also lie between bounds from Opacus, which shares no code with it: for rule `runs`, run by run, above the
lower end of the PRV accountant's interval (Gopi, Lee, Wutschitz 2021) and below its RDP accountant; for a Renyi
filter around its RDP at the filter's order. Opacus supports Gaussian steps, and epochs as Gaussian steps on all data;
it does not support caps, fixed sizes and Skellam noise. Releases that it does not support only add to an epsilon, so
its figure for the others is still a lower bound. `Check` says what was compared.

Rows of ledgers of schema 1 and 2 have the figures of their time, the account of the list of releases so far, or,
from where they were continued, those of the Renyi filter.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import InputError, LedgerError
from .accounting import epsilon
from .composition import RUNS, Run, Terms, composition, share
from .events import EpochGaussian, Event, GaussianSteps, TruncatedGaussianSteps
from .ledger_file import LedgerHeader, LedgerRow, Runs, add_row, runs_of

_INDEPENDENT_ROWS = 4
# The PRV accountant's own interval is +- this wide, or wider where that would take more than _PRV_CELLS cells of
# its grid, about 2 (epsilon + 3) sqrt(12 steps) / error; beyond an epsilon of 100 it is not used.
_PRV_ERROR = 0.01
_PRV_CELLS = 1 << 22
_PRV_REACH = 100.0
# The tolerance of stored figures against the independent bounds: 1%, and a little for epsilons near 0.
_SLACK, _LITTLE = 0.01, 1e-3
# The largest share of delta that a Renyi filter reserves for what the divergence does not cover.
_FILTER_RESERVE = 0.01

Rule = Callable[[Sequence[Run]], float]
History = tuple[tuple[float, float, int], ...]  # (noise_multiplier, sampling_rate, steps), as Opacus has it


@dataclass(frozen=True)
class Check:
    """Row `seq` against an independent accountant; None: no bound from that side."""

    seq: int
    epsilon: float
    lower: float | None
    upper: float | None
    says: str


@dataclass(frozen=True)
class Verification:
    """All `rows` agree with the hash chain and `accountant`, some with the independent one too."""

    rows: int
    accountant: str
    composition: str
    checks: tuple[Check, ...]

    def __str__(self) -> str:
        text = (
            f"{self.rows} rows fit their hashes and the {self.accountant} account of dp-accounting; composition: "
            f"{self.composition}"
        )
        return "; ".join([text, *(f"row {check.seq}: {check.says}" for check in self.checks)])


def verify_rows(path: Path, header: LedgerHeader, rows: Sequence[LedgerRow]) -> Verification:
    """Recompute all figures of a ledger.

    Raises:
        LedgerError: names the first row that is wrong.
    """
    rule = composition(header.composition, header.delta, header.order)
    rules: list[Rule] = [rule.epsilon] if header.pinned else [_list_rule(header.delta), rule.epsilon]
    runs: Runs = {}
    # One figure for each rule that may have written the row.
    before, of_old = [0.0] * len(rules), 0
    for row in rows:
        try:
            add_row(runs, row)
            after = [each(list(runs.values())) for each in rules]
        except InputError as error:
            raise LedgerError(f"ledger {path} row {row.seq}: {error}") from error
        begun = runs[row.run] if row.planned else None
        if begun is not None and (
            begun.terms != Terms(row.event, row.planned, row.unit) or begun.made > row.planned
        ):
            raise LedgerError(
                f"ledger {path} row {row.seq}: release {begun.made} of run={row.run!r} is not of the terms that its "
                "first row pinned: restore the ledger from a backup"
            )
        for field, stored, computed in (
            ("epsilon_before", row.epsilon_before, before),
            ("epsilon_after", row.epsilon_after, after),
        ):
            if not any(_close(stored, value) for value in computed):
                raise LedgerError(
                    f"ledger {path} row {row.seq}: {field}={stored!r}, but the events cost "
                    f"{computed[0]!r}: restore the ledger from a backup"
                )
        # Once a ledger continues by the filter, all further rows are by the filter.
        while len(rules) > 1 and not _close(row.epsilon_after, after[0]):
            rules, after = rules[1:], after[1:]
        before, of_old = after, of_old + (len(rules) > 1)
    # The independent accountant is slow: a few rows, evenly spaced, and the last, which depends on all others.
    chosen = sorted({math.ceil(len(rows) * (n + 1) / _INDEPENDENT_ROWS) for n in range(_INDEPENDENT_ROWS)})
    checks = tuple(check_row(path, header, rows[:seq], seq <= of_old) for seq in chosen if seq > 0)
    return Verification(len(rows), rule.accountants(list(runs.values())), str(rule), checks)


def _list_rule(delta: float) -> Rule:
    """The account of ledgers from before compositions existed."""
    return lambda runs: epsilon([run.terms.event for run in runs], delta)


def _close(stored: float, computed: float) -> bool:
    """Loose enough for another version of the numerical libraries, tight enough to notice a changed figure."""
    return math.isclose(stored, computed, rel_tol=1e-3, abs_tol=1e-6)


def check_row(path: Path, header: LedgerHeader, rows: Sequence[LedgerRow], of_old: bool = False) -> Check:
    """Compare the last of `rows` with the independent bounds; `of_old`: its figure is the account of a list.

    Raises:
        LedgerError: the figure is outside of them.
    """
    last, events = rows[-1], [row.event for row in rows]
    if header.composition == RUNS:
        lower, upper, says = _bounds_by_run(list(runs_of(rows).values()), header.delta)
    elif of_old or header.order is None:
        lower, upper, says = independent_bounds(events, header.delta)
    else:
        lower, upper, says = _bounds_of_filter(events, header.delta, header.order)
    low = -math.inf if lower is None else lower * (1 - _SLACK) - _LITTLE
    high = math.inf if upper is None else upper * (1 + _SLACK) + _LITTLE
    if not low <= last.epsilon_after <= high:
        raise LedgerError(
            f"ledger {path} row {last.seq}: epsilon_after={last.epsilon_after!r} lies outside {lower} to {upper}, "
            f"by {says}: the two accountants disagree; do not release anything before you know why"
        )
    return Check(last.seq, last.epsilon_after, lower, upper, says)


def _bounds_by_run(runs: Sequence[Run], delta: float) -> tuple[float | None, float | None, str]:
    """The sums of the runs' bounds, each at its share of delta; a missing lower bound counts as 0."""
    bounds = [independent_bounds([run.terms.whole], share(k) * delta) for k, run in enumerate(runs, start=1)]
    lowers, uppers = [b[0] for b in bounds], [b[1] for b in bounds]
    lower = None if all(low is None for low in lowers) else math.fsum(low or 0.0 for low in lowers)
    upper = None if None in uppers else math.fsum(up or 0.0 for up in uppers)
    return lower, upper, " and ".join(dict.fromkeys(says for *_, says in bounds))


def independent_bounds(events: Sequence[Event], delta: float) -> tuple[float | None, float | None, str]:
    """(lower, upper, which accountant says so) for the epsilon of `events`, without dp-accounting."""
    counts, exact = _counted(events)
    if not counts:
        return None, None, "no independent accountant knows these mechanisms"
    history = tuple((noise, rate, steps) for (noise, rate), steps in sorted(counts.items()))
    rdp = _rdp_upper(history, delta)
    lower = _prv_lower(history, delta, rdp)
    below = "nothing below (beyond Opacus' PRV accountant)" if lower is None else "Opacus' PRV below"
    if exact and math.isfinite(rdp):
        return lower, rdp, f"{below}, its RDP above"
    return lower, None, f"{below}, for the releases and parts of releases it knows; nothing above"


def _counted(events: Sequence[Event]) -> tuple[Counter[tuple[float, float]], bool]:
    """Steps by (noise_multiplier, sampling_rate), and whether Opacus supports all events."""
    counts: Counter[tuple[float, float]] = Counter()
    exact = True
    for event in events:
        if isinstance(event, (GaussianSteps, TruncatedGaussianSteps)):
            counts[event.noise_multiplier, event.sampling_rate] += event.steps
            exact = exact and isinstance(event, GaussianSteps)
        elif isinstance(event, EpochGaussian):
            counts[event.noise_multiplier, 1.0] += event.epochs
        else:
            exact = False
    return counts, exact


def _bounds_of_filter(
    events: Sequence[Event], delta: float, order: float
) -> tuple[float | None, float | None, str]:
    """Opacus' divergence at the filter's order, converted by Opacus without and with the reserve of delta."""
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

    counts, exact = _counted(events)
    if not counts:
        return None, None, "no independent accountant knows these mechanisms"
    divergence = math.fsum(
        float(compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=order))
        for (noise, rate), steps in counts.items()
    )
    if not math.isfinite(divergence):
        return None, None, "nothing below or above (beyond Opacus' RDP accountant)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the choice of orders
        lower, upper = (
            float(get_privacy_spent(orders=[order], rdp=[divergence], delta=reserved * delta)[0])
            for reserved in (1.0, 1 - _FILTER_RESERVE)
        )
    says = f"Opacus' RDP at order {order:g}"
    if exact:
        return lower, upper, says
    return lower, None, f"{says} for the releases and parts of releases it knows; nothing above"


@lru_cache(maxsize=64)
def _prv_lower(history: History, delta: float, rdp: float) -> float | None:
    """The lower end of the PRV accountant's interval; None where its arithmetic or memory would fail."""
    steps = sum(steps for _, _, steps in history)
    error = max(_PRV_ERROR, 2 * (rdp + 3) * math.sqrt(12 * steps) / _PRV_CELLS)
    if not rdp <= _PRV_REACH:
        return None
    # Imported late: Opacus imports torch, which nothing else here needs.
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = list(history)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Its public method returns only the upper end.
            found = accountant._get_dprv(eps_error=error, delta_error=delta / 1000)
            lower = float(found.compute_epsilon(delta, delta / 1000, error)[0])
    except (ArithmeticError, MemoryError, RuntimeError, ValueError):
        return None
    return max(lower, 0.0) if math.isfinite(lower) else None


@lru_cache(maxsize=64)
def _rdp_upper(history: History, delta: float) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = list(history)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = float(accountant.get_epsilon(delta))
    return math.inf if math.isnan(found) else found
