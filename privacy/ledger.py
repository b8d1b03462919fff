"""A company's ledger: every release that leaves, charged on disk before the training that makes it.

Purpose: the company's own record of what it has spent over all runs, rounds and blocks; it survives crashes
and never under-counts. Releases are data (`events.py`), from which every epsilon can be recomputed. Accounting a run
may take seconds. So under the rule `runs` a charge starts from the last row's epsilon, which the hash chain protects,
if the same version of the accountant wrote it; else from all events. `spent` and `verify` always start from the
events.

A run is pinned by its first release: every row says what the run's releases are and the largest number of them; a
release of other terms, or one more, is refused. How runs compose, though each may have been chosen after seeing the
others' releases, is the ledger's composition (`composition.py`), chosen when it is created.

Ledgers of schema 1 and 2 pinned nothing. They are read as they are and continue by the Renyi filter, release by
release, at the order for a ceiling of 8: had it been used from the beginning, it would have refused nothing that they
hold, so it holds for them. That is true of noise in real numbers: their rows do not say how many values got noise,
so what floating point may leak is charged for later rows only.

All runs of a ledger have one unit of privacy. A run whose unit is a group of records moves its sums by at most the
clip when a whole group comes or goes, but by up to twice that when one record of a group does; a run whose unit is a
record, by many clips when a whole group does. So the two kinds of epsilon do not add up to anything.

A Renyi filter proves a ceiling that was fixed beforehand. If a policy's ceiling is raised after seeing releases, what
holds is the highest ceiling to which the company would have raised it, whatever it had seen.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ..errors import BudgetExceeded, InputError, LedgerError
from .accounting import ACCOUNT, Guarantee, round_up
from .composition import MAX_KINDS, RENYI, RUNS, Run, Terms, composition, order_for
from .events import ADD_REMOVE, ADJACENCIES, Event, NoNoise
from .ledger_file import LedgerHeader, LedgerRow, Runs, runs_of, spent
from .ledger_room import check_composes
from .ledger_store import LedgerStore, Witness
from .verification import Verification, verify_rows

_LONGEST_TEXT = 200


@dataclass(frozen=True)
class Charge:
    """The company's epsilon before and after; a `repeated` release was charged earlier and costs nothing."""

    epsilon_before: float
    epsilon_after: float
    repeated: bool


class Ledger:
    """What one company has spent, and what it may still spend.

    terms = Terms(GaussianSteps(sampling_rate=0.1, noise_multiplier=2.0, steps=5, dimension=10_000), releases=60)
    with Ledger.open("ledger.sqlite", "acme", epsilon_ceiling=8.0, delta=1e-5) as ledger:
        ledger.check_plan("r1", terms)                                                # raises unless the run fits
        ledger.charge(run="r1", round=3, block="b0", release_id=digest, terms=terms)  # on disk when it returns
        train()
        print(ledger.spent())
    """

    def __init__(self, store: LedgerStore, *, company: str, epsilon_ceiling: float, delta: float,
                 clock: Callable[[], float]) -> None:  # fmt: skip
        self._store = store
        self._company = company
        self._ceiling = epsilon_ceiling
        self._delta = delta
        self._clock = clock
        own = store.header
        self._rule = composition(own.composition, own.delta, own.order)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        company: str,
        epsilon_ceiling: float,
        delta: float,
        clock: Callable[[], float] = time.time,
        adjacency: str = ADD_REMOVE,
        rule: str = RUNS,
        witness: Witness | None = None,
        *,
        durable: bool = True,
    ) -> "Ledger":
        """Open the ledger, or create it; with a `witness`, which has seen its length, it is only opened.

        `durable` false: charges survive this process, but not the machine; for invented companies alone.

        The company may change the ceiling; company, delta, adjacency and `rule`, the composition, are fixed at
        creation, since they define what every epsilon means.

        Raises:
            InputError: an argument is out of range.
            LedgerError: the ledger is damaged, missing, not as the witness has seen it, or was created otherwise.
        """
        _text("company", company)
        ceiling, delta = _number("epsilon_ceiling", epsilon_ceiling), _number("delta", delta)
        if ceiling < 0:
            raise InputError("epsilon_ceiling", ceiling, "must be at least 0")
        if not 0 < delta < 1:
            raise InputError("delta", delta, "must lie between 0 and 1")
        if adjacency not in ADJACENCIES:
            raise InputError("adjacency", adjacency, f"must be one of {ADJACENCIES}")
        order = order_for(ceiling, delta) if rule == RENYI else None
        composition(rule, delta, order)
        header = LedgerHeader(company, delta, adjacency, rule, order)
        store = LedgerStore(Path(path), header, witness, durable=durable)
        return cls(store, company=company, epsilon_ceiling=ceiling, delta=delta, clock=clock)

    def charge(self, *, run: str, round: int, block: str, release_id: str, terms: Terms) -> Charge:
        """Record one release of a run before it is made, or raise and write nothing.

        A release without noise passes every ceiling: the company's policy decides whether it is made. It is
        recorded, and no release with noise fits under a ceiling after it.

        A `release_id` stands for the bits of the noise and of the inputs: the same id with the same content is the
        same release again, which reveals nothing new and is not charged twice.

        Raises:
            BudgetExceeded: past the ceiling, or past the number of releases that the run is pinned to.
            LedgerError: other terms than the run is pinned to, a `release_id` of other content, or a damaged ledger.
            InputError: an argument is out of range.
        """
        for field, value in (("run", run), ("block", block), ("release_id", release_id)):
            _text(field, value)
        if isinstance(round, bool) or not isinstance(round, int) or not 0 <= round < 1 << 63:
            raise InputError("round", round, "must be an integer of at least 0")
        event = self._check(terms.event)
        with self._store.transaction():
            rows = self._store.rows()
            before = self._before(rows)
            earlier = next((row for row in rows if row.release_id == release_id), None)
            if earlier is not None:
                _check_same(earlier, run, round, block, event)
                return Charge(before, before, repeated=True)
            after = self._after(runs_of(rows), rows, before, run, terms, made=1)
            row = LedgerRow(
                seq=len(rows) + 1,
                company=self._company,
                run=run,
                round=round,
                block=block,
                release_id=release_id,
                event=event,
                unit=terms.unit,
                adjacency=event.adjacency,
                delta=self._delta,
                epsilon_before=before,
                epsilon_after=after,
                time=_number("clock", self._clock()),
                planned=terms.releases if self._store.header.pinned else 0,
                account=ACCOUNT,
            )
            self._store.append(row, rows)
        return Charge(before, after, repeated=False)

    def spent(self) -> Guarantee:
        """The cost of all rows together, recomputed from their events."""
        return spent(self._store.header, self._store.rows())

    def check_plan(self, run: str, terms: Terms) -> float:
        """The epsilon after all releases of the run, some of which may be charged already; raises as `charge`."""
        return self.check_plans([(run, terms)])

    def check_plans(self, parts: Sequence[tuple[str, Terms]]) -> float:
        """As `check_plan`, of several runs that begin in this order, each with its name and terms."""
        rows = self._store.rows()
        runs, epsilon = runs_of(rows), self._before(rows)
        for run, terms in parts:
            _text("run", run)
            self._check(terms.event)
            begun = runs.get(run)
            left = terms.releases - (0 if begun is None else min(begun.made, terms.releases))
            epsilon = self._after(runs, rows, epsilon, run, terms, made=left)
            runs[run] = Run(terms, terms.releases)
        return epsilon

    def check_release(self, run: str, terms: Terms, release_id: str) -> None:
        """Raises what a `charge` of this release would raise, and writes nothing."""
        _text("run", run)
        self._check(terms.event)
        rows = self._store.rows()
        if all(row.release_id != release_id for row in rows):
            self._after(runs_of(rows), rows, self._before(rows), run, terms, made=1)

    def _before(self, rows: Sequence[LedgerRow]) -> float:
        """The cost of all rows."""
        if rows and self._rule.name == RUNS and rows[-1].account == ACCOUNT:
            return rows[-1].epsilon_after
        return self._rule.epsilon(list(runs_of(rows).values()))

    def _after(
        self,
        runs: Runs,
        rows: Sequence[LedgerRow],
        before: float,
        run: str,
        terms: Terms,
        made: int,
    ) -> float:
        """The epsilon after `made` further releases of the run, where `runs` have cost `before`; raises if its terms
        or the ceiling forbid them."""
        begun, others = runs.get(run), [each for name, each in runs.items() if name != run]
        if other := next((each.terms.unit for each in others if each.terms.unit != terms.unit), None):
            raise LedgerError(
                f"company={self._company!r}: the ledger's unit of privacy is {other!r}, that of run={run!r} is "
                f"{terms.unit!r}: their epsilons do not add up; it needs a ledger of its own, whose guarantee is "
                "then a separate one"
            )
        if begun is not None and begun.terms != terms:
            raise LedgerError(
                f"company={self._company!r}: run={run!r} is pinned to {begun.terms}; now it comes with {terms}: "
                "other terms need another run"
            )
        if begun is not None and begun.made + made > terms.releases:
            raise BudgetExceeded(
                f"company={self._company!r}: run={run!r} is pinned to {terms.releases} releases, of which "
                f"{begun.made} were made: more need another run"
            )
        if begun is None and self._rule.full(others, terms):
            raise LedgerError(
                f"company={self._company!r}: the ledger has the most runs, or kinds of release, that it accounts "
                f"({MAX_KINDS}): more need a ledger of its own, whose guarantee is then a separate one"
            )
        if begun is not None and self._rule.name == RUNS:
            after = before  # the whole run is charged at its first release
        else:
            after = self._rule.further(before, others, terms, made + (0 if begun is None else begun.made))
        # Written so that a NaN is refused too.
        if not after <= self._ceiling and not isinstance(terms.event, NoNoise):
            self._check_bounded(rows)
            # How many would fit is not computed here: the time that takes would reveal what is left.
            raise BudgetExceeded(
                f"company={self._company!r}: a run of {terms} would bring epsilon from {round_up(before)} to "
                f"{round_up(after)}, past the ceiling {self._ceiling:g}: `fedblocks ledger show` says what is spent, "
                "`fedblocks account --spent` how many releases still fit"
            )
        return after

    def rows(self) -> list[LedgerRow]:
        """All rows in order, their hash chain checked."""
        return self._store.rows()

    def begins(self, rows: int, head: str) -> bool:
        """Whether the first `rows` rows have the hash `head`."""
        found = self._store.rows()
        return rows <= len(found) and self._store.head(found[:rows]) == head

    def head(self) -> str:
        """The hash of all rows; a copy of it elsewhere shows if a ledger was truncated or replaced by an old one."""
        return self._store.head()

    def verify(self) -> Verification:
        """Recompute all hashes and every epsilon.

        Raises:
            LedgerError: names the first row that is wrong.
        """
        self._store.check_integrity()
        return verify_rows(self._store.path, self._store.header, self._store.rows())

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, event: Event) -> Event:
        return check_composes(self._store.header, event)

    def _check_bounded(self, rows: Sequence[LedgerRow]) -> None:
        for row in rows:
            if isinstance(row.event, NoNoise):
                raise BudgetExceeded(
                    f"company={self._company!r}: row {row.seq} (run {row.run!r}) was released without noise, so "
                    "epsilon is infinite from then on and no release fits under any ceiling"
                )


def _check_same(row: LedgerRow, run: str, round: int, block: str, event: Event) -> None:
    if (row.run, row.round, row.block, row.event) != (run, round, block, event):
        raise LedgerError(
            f"release_id={row.release_id!r} was charged in row {row.seq} for run={row.run!r} "
            f"round={row.round} block={row.block!r} {row.event}; now it comes with run={run!r} round={round} "
            f"block={block!r} {event}: a new release needs a new id"
        )


def _text(field: str, value: object) -> None:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= _LONGEST_TEXT:
        raise InputError(field, value, f"must be 1 to {_LONGEST_TEXT} printable characters")


def _number(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(field, value, "must be a finite number")
    return float(value)
