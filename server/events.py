"""What happens in a run, as data: the coordinator tells it to every subscriber, in the order of their list.

    def show(event: Event) -> None:
        if isinstance(event, RoundFinished):
            print(event.round, event.row.get("quality"))

    coordinate(grid, run, [show])

A subscriber is called in the coordinator's thread, and the run waits for it. What an event tells of is on the disk by
then. A subscriber that raises ends the run as Ctrl-C does: those after it are not told, and the run can be resumed. A
resumed run tells of its further rounds only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunStarted:
    """A run begins, or goes on from a checkpoint: of `rounds` rounds, `done` lie behind it."""

    rounds: int
    done: int

    @property
    def to_go(self) -> int:
        return self.rounds - self.done


@dataclass(frozen=True)
class RoundFinished:
    """A round's line of metrics and its checkpoint are written; round 0 is the public model before any training.

    `row`: what has been appended to the run's metrics.
    """

    row: Mapping[str, Any]

    @property
    def round(self) -> int:
        number: int = self.row["round"]
        return number


@dataclass(frozen=True)
class CompaniesAwaited:
    """The run waits for these companies, or goes on without them in a moment."""

    missing: tuple[str, ...]


@dataclass(frozen=True)
class RoundFailed:
    """A round has failed. Where too few companies came to its end it is begun anew; with any other `status` its sum
    is spent, and the round is lost.

    `absent`: company -> (phase, code). `in_a_row`: how many have failed since the last one that was done.
    """

    round: int
    absent: Mapping[str, tuple[str, str]]
    in_a_row: int
    status: str = "too_few"


@dataclass(frozen=True)
class ModelDelivered:
    """The last round's model is with the companies of `has`; why it is not with others, company -> code."""

    has: tuple[str, ...]
    missing: Mapping[str, str]


@dataclass(frozen=True)
class RunFinished:
    """The last round is done. The summary of a simulation is written after this."""

    rounds: int


Event = RunStarted | CompaniesAwaited | RoundFailed | RoundFinished | ModelDelivered | RunFinished
Subscriber = Callable[[Event], None]
