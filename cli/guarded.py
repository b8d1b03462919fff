"""A `fedblocks` command that ends with the process that started it: `python -m fedblocks.cli.guarded agent up HOME`.

Its standard input is a pipe whose other end the starter holds and never writes to. When the starter is gone, however
that happened, the pipe ends; then the command is told to end, and after a while it is ended. So nothing stays behind
even after SIGKILL to the starter.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

# A company may be training; it ends after the message in hand.
_ENDS_WITHIN = 30.0


def _follow() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_ENDS_WITHIN)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_follow, daemon=True).start()
    from .main import main

    sys.argv[0] = "fedblocks"
    main()
