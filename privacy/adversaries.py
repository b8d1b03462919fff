"""Against which adversary a list of releases is accounted, and its account against a company that takes part.

Noise that companies share protects a sum from anyone who knows no share. A company that takes part knows its own and
can subtract it: of h equal shares h - 1 protect against it. A plan that tolerates c colluders counts the shares of
the others only, so its epsilon holds even if the coordinator and c companies combine what they know. The epsilon of a
plan that tolerates none holds against the coordinator only.
"""

from collections.abc import Iterable
from dataclasses import replace

from .events import Event, NoNoise, SharedSkellamSteps, SkellamSteps

ANYONE = "the coordinator and all other companies together"
COORDINATOR = "the coordinator alone, not a company that takes part"
UNKNOWN = "the coordinator alone: some rows do not say whose noise they count on"


def against(events: Iterable[Event]) -> str:
    """The strongest of the three adversaries against whom all of `events` are accounted."""
    shared = [event for event in events if isinstance(event, SkellamSteps)]
    if not shared:
        return ANYONE
    if not all(isinstance(event, SharedSkellamSteps) for event in shared):
        return UNKNOWN
    colluders = min(event.colluders for event in shared if isinstance(event, SharedSkellamSteps))
    return (
        f"the coordinator together with up to {colluders} companies that take part"
        if colluders
        else COORDINATOR
    )


def seen_by_company(event: Event) -> Event:
    """The release against a company that takes part and knows its own share of the noise."""
    if not isinstance(event, SkellamSteps):
        return event
    if not isinstance(event, SharedSkellamSteps):
        # The number of shares was not recorded: no bound is known.
        return NoNoise(steps=event.steps)
    # If the account counts on one share only, that is the share of the company whose guarantee this is.
    if event.colluders or event.shares == 1:
        return event
    return replace(event, variance=event.variance * (event.shares - 1) / event.shares)
