"""When an answer leaves, if the company fixes it: after a whole number of durations, whatever the work took.

How long a training takes can depend on the examples (caches, subnormal numbers, allocations), and how long a join
takes on what the ledger holds and how much of it is left. Whoever waits for the answer sees that. With
`answer_seconds` in the policy the answer leaves exactly one duration after the message was taken. Work that takes
longer is not sent: the answer is then the code "late", at the end of the duration in which it was done, so that all
there is to see is in how many durations that was.
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
    """Seconds that never go back, and waiting for some of them."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def timed(
    work: Callable[[], RecordDict], seconds: float | None, clock: Clock = Clock()
) -> tuple[RecordDict, int]:
    """What `work` returns, `seconds` after the call, and in how many durations it was done.

    `work` does not raise. Without `seconds` its record is returned at once.
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
