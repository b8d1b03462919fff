"""Fixed answer times, if the company sets them: an answer leaves after a whole number of durations.

The time that training takes can depend on the examples (caches, subnormal numbers, allocations), that of a join on
the ledger's rows and remaining budget, and that of being ready for a round, which answers its keys, on both. The
recipient of the answer sees this time. With `answer_seconds` in the policy the answer leaves exactly one duration
after the message was received. If the work takes longer its result is not sent: the answer is the code "late", at the
end of the duration in which the work was done, so that only the number of durations is visible.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import RecordDict

from ..errors import ProtocolError
from ..protocol.messages import refusal


@dataclass(frozen=True)
class Clock:
    """A monotonic clock, and a function that waits."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def timed(
    work: Callable[[], RecordDict], seconds: float | None, clock: Clock = Clock()
) -> tuple[RecordDict, int]:
    """The result of `work`, `seconds` after the call, and the number of durations that it took.

    `work` must not raise. Without `seconds` its record is returned at once.
    """
    taken = clock.now()
    record = work()
    if seconds is None:
        return record, 1
    durations = max(1, math.ceil((clock.now() - taken) / seconds))
    if durations > 1:
        record = refusal(ProtocolError("late", "the work took longer than the policy's answer_seconds"))
    while (left := taken + durations * seconds - clock.now()) > 0:
        clock.sleep(left)
    return record, durations
