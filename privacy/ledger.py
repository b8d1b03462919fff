"""A company's ledger: every release that leaves, charged on disk before the training that makes it.

Purpose: the company's own record of what it has spent over all runs, rounds and blocks; it survives crashes
and never under-counts. Releases are data (`events.py`): the epsilon that counts is recomputed from all
events at each charge (composition as in `accounting.py`), never read back from a row.
"""

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ..errors import BudgetExceeded, InputError, LedgerError
from .accounting import Guarantee, epsilon, guarantee, largest, releases_within, round_up
from .events import ADD_REMOVE, ADJACENCIES, UNIT, Event, NoNoise, check_event
from .ledger_file import LedgerRow
from .ledger_store import LedgerStore, Witness
from .verification import Verification, verify_rows

_LONGEST_TEXT = 200


@dataclass(frozen=True)
class Charge:
    """The company's epsilon before and after; a `repeated` release was charged earlier and adds nothing."""

    epsilon_before: float
    epsilon_after: float
    repeated: bool


class Ledger:
    """What one company has spent, and what it may still spend.

    with Ledger.open("ledger.sqlite", "acme", epsilon_ceiling=8.0, delta=1e-5) as ledger:
        ledger.charge(run="r1", round=3, block="b0", release_id=digest, event=steps)  # raises, or is on disk
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

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        company: str,
        epsilon_ceiling: float,
        delta: float,
        clock: Callable[[], float] = time.time,
        adjacency: str = ADD_REMOVE,
        witness: Witness | None = None,
    ) -> "Ledger":
        """Open or create; open alone where a `witness` knows how far the ledger has come. The ceiling is the
        company's to choose; company, delta and adjacency are fixed at creation: which data sets count as neighbours
        decides what every epsilon means."""
        _text("company", company)
        ceiling, delta = _number("epsilon_ceiling", epsilon_ceiling), _number("delta", delta)
        if ceiling < 0:
            raise InputError("epsilon_ceiling", ceiling, "must be at least 0")
        if not 0 < delta < 1:
            raise InputError("delta", delta, "must lie between 0 and 1")
        if adjacency not in ADJACENCIES:
            raise InputError("adjacency", adjacency, f"must be one of {ADJACENCIES}")
        store = LedgerStore(Path(path), company, delta, adjacency, witness)
        return cls(store, company=company, epsilon_ceiling=ceiling, delta=delta, clock=clock)

    def charge(self, *, run: str, round: int, block: str, release_id: str, event: Event) -> Charge:
        """Record one release before it is made, or raise BudgetExceeded and write nothing.

        A release without noise passes every ceiling: whether it is made is for the company's policy to say. It is
        recorded, and no release with noise fits under a ceiling after it.

        A `release_id` stands for the bits of the noise and of the inputs: the same id with the same content
        is the same release made again, which tells nobody anything new and is not charged twice.
        """
        for field, value in (("run", run), ("block", block), ("release_id", release_id)):
            _text(field, value)
        if isinstance(round, bool) or not isinstance(round, int) or not 0 <= round < 1 << 63:
            raise InputError("round", round, "must be an integer of at least 0")
        self._check(event)
        with self._store.transaction():
            rows = self._store.rows()
            spent = [row.event for row in rows]
            before = epsilon(spent, self._delta)
            earlier = next((row for row in rows if row.release_id == release_id), None)
            if earlier is not None:
                _check_same(earlier, run, round, block, event)
                return Charge(before, before, repeated=True)
            after = epsilon([*spent, event], self._delta)
            # Written so that a NaN is refused too.
            if not after <= self._ceiling and not isinstance(event, NoNoise):
                self._check_bounded(rows)
                fit = releases_within(self._ceiling, self._delta, event, spent)
                raise BudgetExceeded(
                    f"company={self._company!r}: this release would bring epsilon from {round_up(before)} to "
                    f"{round_up(after)}, past the ceiling {self._ceiling:g}; {fit} more releases like it fit"
                )
            row = LedgerRow(
                seq=0,
                company=self._company,
                run=run,
                round=round,
                block=block,
                release_id=release_id,
                event=event,
                unit=UNIT,
                adjacency=event.adjacency,
                delta=self._delta,
                epsilon_before=before,
                epsilon_after=after,
                time=_number("clock", self._clock()),
            )
            self._store.append(row)
        return Charge(before, after, repeated=False)

    def spent(self) -> Guarantee:
        """What all rows together cost, recomputed from their events."""
        return guarantee(self._events(), self._delta, self._store.identity.adjacency)

    def remaining(self, event: Event) -> int:
        """How many releases like `event` still fit under the ceiling."""
        return releases_within(self._ceiling, self._delta, self._check(event), self._events())

    def check_plan(self, events: Iterable[Event]) -> float:
        """The epsilon that the whole plan would reach; raises BudgetExceeded if that passes the ceiling.

        For releases without noise as in `charge`.
        """
        spent, plan = self._events(), [self._check(event) for event in events]
        projected = epsilon([*spent, *plan], self._delta)
        if not projected <= self._ceiling and not all(isinstance(event, NoNoise) for event in plan):
            self._check_bounded(self._store.rows())
            fit = largest(lambda n: epsilon([*spent, *plan[:n]], self._delta) <= self._ceiling, len(plan))
            raise BudgetExceeded(
                f"company={self._company!r}: the plan would bring epsilon from "
                f"{round_up(epsilon(spent, self._delta))} to {round_up(projected)}, past the ceiling "
                f"{self._ceiling:g}; the first {fit} of its {len(plan)} releases fit"
            )
        return projected

    def rows(self) -> list[LedgerRow]:
        """All rows in order, their hash chain checked."""
        return self._store.rows()

    def head(self) -> str:
        """The hash that stands for all rows; kept elsewhere, it shows a ledger cut short or put back."""
        return self._store.head()

    def verify(self) -> Verification:
        """Recompute all hashes and every epsilon; raises LedgerError naming the first row that is wrong."""
        self._store.check_integrity()
        return verify_rows(self._store.path, self._store.rows(), self._delta)

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, event: Event) -> Event:
        own = self._store.identity.adjacency
        if check_event(event).adjacency != own:
            raise LedgerError(
                f"company={self._company!r}: the ledger's adjacency is {own!r}, that of {event.mechanism} is "
                f"{event.adjacency!r}: their epsilons do not add up; it needs a ledger of its own, whose "
                "guarantee is then a separate one"
            )
        return event

    def _check_bounded(self, rows: list[LedgerRow]) -> None:
        for row in rows:
            if isinstance(row.event, NoNoise):
                raise BudgetExceeded(
                    f"company={self._company!r}: row {row.seq} (run {row.run!r}) was released without noise, so "
                    "epsilon is infinite from then on and no release fits under any ceiling"
                )

    def _events(self) -> list[Event]:
        return [row.event for row in self._store.rows()]


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
