"""Which releases a ledger can hold, and how many more of them fit under its ceiling."""

from collections.abc import Sequence

from ..errors import InputError, LedgerError
from .accounting import largest
from .composition import Run, fitting
from .events import Event, GaussianEvent, check_event
from .ledger_file import LedgerCopy, LedgerHeader, runs_of


def remaining(ledger: LedgerCopy, event: Event, ceiling: float, run: str = "") -> int:
    """How many releases like `event` still fit under the ceiling: of a new run, or of `run` if it has begun.

    Raises:
        InputError: the event does not say its dimension.
        LedgerError: its adjacency is not the ledger's.
    """
    check_composes(ledger.header, event)
    named = runs_of(ledger.rows)
    begun = named.pop(run, None)
    if begun is None:
        return fitting(ledger.composition, ledger.runs, event, ceiling)
    others: Sequence[Run] = list(named.values())

    def fits(more: int) -> bool:
        return ledger.composition.epsilon([*others, begun._replace(made=begun.made + more)]) <= ceiling

    return largest(fits, begun.terms.releases - begun.made)


def check_composes(own: LedgerHeader, event: Event) -> Event:
    """The event, if a ledger of this header can hold it; raises as `remaining` does."""
    if isinstance(check_event(event), GaussianEvent) and event.values == 0:
        raise InputError("event", event.to_json(), "must say its dimension: version 1 is of real numbers")
    if event.adjacency != own.adjacency:
        raise LedgerError(
            f"company={own.company!r}: the ledger's adjacency is {own.adjacency!r}, that of {event.mechanism} is "
            f"{event.adjacency!r}: their epsilons do not add up; it needs a ledger of its own, whose "
            "guarantee is then a separate one"
        )
    return event
