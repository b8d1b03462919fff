"""The part of a company's agent that works: it checks plans, trains and answers, in a process of its own.

It is started when a message comes (see `worker_process`), and ends when none has come for a while or the run is over.
So an agent that only waits holds neither PyTorch nor the company's data in memory, and what a training has taken goes
back to the system. What a session needs between two messages, its keys among it, is the agent's: the worker gets it
with each message and gives it back with the answer, so no session is lost with a worker that ends.

It ends at once when the agent is gone, in whatever it does, as one process would.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from flwr.app import Context, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as StateOnPipe

from ..errors import FedblocksError, InputError, LedgerError, RunError
from ..glibc_malloc import keep_freed_memory
from ..protocol.core_dumps import forbid_core_dumps
from ..protocol.log_text import escape_logs
from ..protocol.transport.frames import Incoming
from ..protocol.transport.records import stamp_messages
from .agent import answer
from .agent_metrics import observed
from .app import app, channel_of
from .company import Company
from .company_log import company_logger, use_json
from .worker_pipe import receive, send

Requests = queue.SimpleQueue[tuple[dict[str, Any], list[bytes]]]


def main() -> None:
    """Work until the agent closes the pipe. Arguments: HOME, and "json" for a log of JSON lines."""
    # The agent decides when to end: it waits for the message in hand.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    given, taken = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed must not stand among the answers
    keep_freed_memory()
    forbid_core_dumps()
    escape_logs()
    use_json("json" in sys.argv[2:])
    stamp_messages()
    requests: Requests = queue.SimpleQueue()
    threading.Thread(target=_read, args=(given, requests), daemon=True).start()
    home = Path(sys.argv[1])
    while True:
        told, parts = requests.get()
        if told["do"] == "answer":
            content, state = parts
            reply, after, seen = _answered(home, told, content, _state(state))
            send(taken, seen, reply, recorddict_to_proto(after).SerializeToString())
        elif told["do"] == "leave":
            send(taken, _done(home, told["run"], _state(parts[0])))
        else:
            send(taken, _done(home))


def _read(given: BinaryIO, requests: Requests) -> None:
    while (found := receive(given)) is not None:
        requests.put(found)
    os._exit(0)  # as SIGKILL to the agent would end it, were both one process


def _state(content: bytes) -> RecordDict:
    return recorddict_from_proto(StateOnPipe.FromString(content))


def _answered(
    home: Path, told: dict[str, Any], content: bytes, state: RecordDict
) -> tuple[bytes, RecordDict, dict[str, Any]]:
    seen: dict[str, Any] = {}
    counting = observed(app, lambda kind, code: seen.update(kind=kind, code=code))
    context = Context(1, 1, {"company-home": str(home)}, state, {})
    message = Incoming(told["id"], told["kind"], content, told["timeout"])
    return answer(message, counting, context, company_logger(home).info), context.state, seen


def _done(home: Path, run: str = "", state: RecordDict | None = None) -> dict[str, Any]:
    """Check what an agent needs before it connects, or forget a run that is over, whose state this was."""
    left = True
    try:
        company = Company.deployed(home)
        if state is None:
            company.startable()
        else:
            left = company.leave(run, channel_of(Context(1, 1, {}, state, {})))
    except OSError as error:
        return {"os": [error.errno, error.strerror, error.filename]}
    except FedblocksError as error:
        kind = "error" if isinstance(error, InputError | RunError) else "stopped"
        return {kind: str(error)}
    found: dict[str, Any] = {"company": company.name, "left": left}
    with suppress(LedgerError):
        now = company.decisions.head()
        found["record"] = f"record of decisions: {now.lines} lines, the last hash {now.head}"
    return found


if __name__ == "__main__":
    main()
