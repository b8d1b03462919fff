"""One process of `test_denormals`: prints JSON of what flushes with `sys.argv[1]` threads, or takes an interrupt."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import torch

from fedblocks.errors import PrivacyError
from fedblocks.privacy.denormals import flushed, flushes


def in_a_thread(work: Callable[[], object]) -> object:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def refusal(set_flush_denormal: Callable[[bool], bool]) -> tuple[bool, str]:
    """Whether work ran where the mode was set like this, and what was said."""
    ran: list[bool] = []
    proper, torch.set_flush_denormal = torch.set_flush_denormal, set_flush_denormal
    try:
        flushed(lambda: ran.append(True))
        return bool(ran), ""
    except PrivacyError as error:
        return bool(ran), str(error)
    finally:
        torch.set_flush_denormal = proper


def report(threads: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    torch.ones(1 << 20).mul_(2)  # the main thread has its team, which does not flush
    found: dict[str, object] = {
        "main": flushes(),
        "another_thread": in_a_thread(flushes),
        "flushed": [flushed(flushes) for _ in range(3)],
        "nothing_set": refusal(lambda on: True),
        "not_supported": refusal(lambda on: False),
    }
    found["cores"] = [
        flushed(torch.get_num_threads),
        torch.get_num_threads(),
        in_a_thread(torch.get_num_threads),
    ]
    found["afterwards"] = (
        flushes(),
        float(np.float64(2.0**-1073) / 2),
        float(np.finfo(float).smallest_subnormal),
    )
    found["new_thread_afterwards"] = in_a_thread(flushes)
    return found


def interrupted() -> None:
    """Says that it works, and goes on until Ctrl-C; then what the work saw of it."""
    seen: list[str] = []

    def work() -> None:
        try:
            print("working", flush=True)
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            seen.append("stopped")
            raise

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background ignores it
    try:
        flushed(work)
    except KeyboardInterrupt:
        print(json.dumps({"work": seen}))


if __name__ == "__main__":
    if sys.argv[1] == "interrupt":
        interrupted()
    else:
        print(json.dumps(report(int(sys.argv[1]))))
