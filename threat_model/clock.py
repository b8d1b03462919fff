"""How long an attack may go on, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """A share of an audit's time, in seconds on the wall.

    clock = Clock(60.0, on_progress)
    for i in range(cases):
        if clock.over:
            break                        # what is missing is inconclusive
        clock.tell(i / cases, "case by case")
    """

    def __init__(
        self, seconds: float, on_progress: Callable[[float, str], None] = lambda share, note: None
    ) -> None:
        self.seconds, self._on_progress = seconds, on_progress
        self._started, self._looked_at = time.monotonic(), False

    @property
    def spent(self) -> float:
        self._looked_at = True
        return time.monotonic() - self._started

    @property
    def left(self) -> float:
        return max(0.0, self.seconds - self.spent)

    @property
    def over(self) -> bool:
        return self.left == 0.0

    @property
    def cut_short(self) -> bool:
        """Whether the time is over and was looked at: who never does has ended by itself, and finds no more in more
        time."""
        return self._looked_at and self.over

    def tell(self, share: float, note: str = "") -> None:
        """`share` in [0, 1] of this attack is done."""
        self._on_progress(min(max(share, 0.0), 1.0), note)
