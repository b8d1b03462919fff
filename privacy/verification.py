"""A ledger's figures checked again: by the accountant that wrote them and by one of another make.

Purpose: an error in one accountant shows in the other. Every row's epsilons are recomputed from its events by
`accounting` (dp-accounting). A few rows, always the last, are also held between bounds from Opacus, which
shares no code with it: above the lower end of the PRV accountant's interval (Gopi, Lee, Wutschitz 2021) and
below its RDP accountant. Opacus knows Gaussian steps, and epochs as Gaussian steps on all data; it does not
know caps, fixed sizes and Skellam noise. Releases beyond what it knows only ever add to an epsilon, so what it
makes of the others is still a lower bound. `Check` says what was compared.
"""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import InputError, LedgerError
from .accounting import accountant_of, epsilon
from .events import EpochGaussian, Event, GaussianSteps, TruncatedGaussianSteps
from .ledger_file import LedgerRow

_INDEPENDENT_ROWS = 4
# The PRV accountant's own interval is +- this wide, or wider where that would take more than so many cells of
# its grid, about 2 (epsilon + 3) sqrt(12 steps) / error; beyond an epsilon of 100 it is not asked.
_PRV_ERROR = 0.01
_PRV_CELLS = 1 << 22
_PRV_REACH = 100.0
# What stored figures may miss the independent bounds by: 1% and a little for epsilons near 0.
_SLACK, _LITTLE = 0.01, 1e-3

History = tuple[tuple[float, float, int], ...]  # (noise_multiplier, sampling_rate, steps), as Opacus has it


@dataclass(frozen=True)
class Check:
    """Row `seq` against an independent accountant. None: nothing bounds it from that side."""

    seq: int
    epsilon: float
    lower: float | None
    upper: float | None
    says: str


@dataclass(frozen=True)
class Verification:
    """All `rows` fit the chain and `accountant`, some the independent one too."""

    rows: int
    accountant: str
    checks: tuple[Check, ...]

    def __str__(self) -> str:
        text = f"{self.rows} rows fit their hashes and the {self.accountant} account of dp-accounting"
        return "; ".join([text, *(f"row {check.seq}: {check.says}" for check in self.checks)])


def verify_rows(path: Path, rows: Sequence[LedgerRow], delta: float) -> Verification:
    """Recompute all figures of a ledger; LedgerError names the first row that is wrong."""
    events: list[Event] = []
    before = 0.0
    for row in rows:
        events.append(row.event)
        try:
            after = epsilon(events, delta)
        except InputError as error:
            raise LedgerError(f"ledger {path} row {row.seq}: {error}") from error
        for field, stored, computed in (
            ("epsilon_before", row.epsilon_before, before),
            ("epsilon_after", row.epsilon_after, after),
        ):
            # Loose enough for another version of the numerical libraries, tight enough for any lie.
            if not math.isclose(stored, computed, rel_tol=1e-3, abs_tol=1e-6):
                raise LedgerError(
                    f"ledger {path} row {row.seq}: {field}={stored!r}, but the events cost "
                    f"{computed!r}: restore the ledger from a backup"
                )
        before = after
    # The independent accountant is slow: a few rows, evenly spaced, and the last, on which all others bear.
    chosen = sorted({math.ceil(len(rows) * (n + 1) / _INDEPENDENT_ROWS) for n in range(_INDEPENDENT_ROWS)})
    checks = tuple(check_row(path, rows[:seq], delta) for seq in chosen if seq > 0)
    return Verification(len(rows), accountant_of(events), checks)


def check_row(path: Path, rows: Sequence[LedgerRow], delta: float) -> Check:
    """Hold the last of `rows` between the independent bounds."""
    last = rows[-1]
    lower, upper, says = independent_bounds([row.event for row in rows], delta)
    low = -math.inf if lower is None else lower * (1 - _SLACK) - _LITTLE
    high = math.inf if upper is None else upper * (1 + _SLACK) + _LITTLE
    if not low <= last.epsilon_after <= high:
        raise LedgerError(
            f"ledger {path} row {last.seq}: epsilon_after={last.epsilon_after!r} lies outside {lower} to {upper}, "
            f"by {says}: the two accountants disagree; do not release anything before it is known why"
        )
    return Check(last.seq, last.epsilon_after, lower, upper, says)


def independent_bounds(events: Sequence[Event], delta: float) -> tuple[float | None, float | None, str]:
    """(lower, upper, which accountant says so) for the epsilon of `events`, without dp-accounting."""
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
    if not counts:
        return None, None, "no independent accountant knows these mechanisms"
    history = tuple((noise, rate, steps) for (noise, rate), steps in sorted(counts.items()))
    rdp = _rdp_upper(history, delta)
    lower = _prv_lower(history, delta, rdp)
    below = "nothing below (beyond Opacus' PRV accountant)" if lower is None else "Opacus' PRV below"
    if exact and math.isfinite(rdp):
        return lower, rdp, f"{below}, its RDP above"
    return lower, None, f"{below}, for the releases and parts of releases it knows; nothing above"


@lru_cache(maxsize=64)
def _prv_lower(history: History, delta: float, rdp: float) -> float | None:
    """The lower end of the PRV accountant's interval; None where its arithmetic or memory would fail."""
    steps = sum(steps for _, _, steps in history)
    error = max(_PRV_ERROR, 2 * (rdp + 3) * math.sqrt(12 * steps) / _PRV_CELLS)
    if not rdp <= _PRV_REACH:
        return None
    # Opacus imports torch, which nothing else here needs.
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = list(history)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Its public method returns the upper end alone.
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
