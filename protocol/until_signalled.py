"""A service that ends when it is told to: by a service manager's SIGTERM, or by Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def until_signalled(stop: Callable[[], None]) -> Iterator[None]:
    """Within the block SIGTERM and SIGINT call `stop`, in a thread of its own: a handler must take no locks."""

    def begin(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=stop).start()

    before = {number: signal.signal(number, begin) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
