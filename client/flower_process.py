"""The processes that a SuperNode starts: Flower's, from this installation, whatever PATH is.

Flower starts `flower-superexec` by name, which starts `flwr-clientapp` by name for every message: the first of that
name on PATH, or none under some service managers. Here both are started with this interpreter, as

    python -P -m fedblocks.client.flower_process NAME ARGUMENTS...

which also escapes their logs, and does not send the texts of their errors. The process of a message is forked from
one that has its imports already, which take seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from importlib import import_module
from typing import Any

from flwr.app import Error

from ..protocol.core_dumps import forbid_core_dumps
from ..protocol.flower_parts import put_in_place
from ..protocol.log_text import escape_logs

# Not __name__, which in such a process is "__main__".
_MODULE = f"{__package__}.flower_process"

# What handling a message imports; nothing of it starts a thread, which a fork would lose.
_NEEDED = [
    "fedblocks.client.app",
    "fedblocks.client.training",
    "flwr.supernode.cli",
    "flwr.supernode.runtime",
]

SUPEREXEC, CLIENT_APP = "flower-superexec", "flwr-clientapp"


class FromHere:
    """Replaces `subprocess` in a module of Flower's that starts one of the two."""

    DEVNULL = subprocess.DEVNULL

    @staticmethod
    def Popen(command: list[str], **named: Any) -> subprocess.Popen[bytes]:
        """Start one of the two commands; RuntimeError for any other."""
        if command[0] not in (SUPEREXEC, CLIENT_APP):
            raise RuntimeError(f"{command[0]!r} is not started here")
        return subprocess.Popen([sys.executable, "-P", "-m", _MODULE, *command], **named)


class Forked(FromHere):
    """Replaces `subprocess` where `flwr-clientapp` is started for a message."""

    @staticmethod
    def Popen(command: list[str], **named: Any) -> Any:
        """Start it, a new process with nothing of an earlier message in it; RuntimeError for any other command."""
        if command[0] != CLIENT_APP:
            raise RuntimeError(f"{command[0]!r} is not started here")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_NEEDED)
        # Of this module by its name: here it is "__main__".
        process = context.Process(target=import_module(_MODULE).main, args=command, daemon=True)
        process.start()
        return process


def main(name: str, *arguments: str) -> None:
    """Run one of Flower's two commands in this process."""
    forbid_core_dumps()
    escape_logs()
    sys.argv = [name, *arguments]
    if name == SUPEREXEC:
        _superexec()
    elif name == CLIENT_APP:
        _client_app()
    else:
        raise SystemExit(f"unknown process {name!r}")


def _superexec() -> None:
    from flwr.supercore.cli import flower_superexec
    from flwr.supercore.superexec.executor import subprocess_executor

    put_in_place(subprocess_executor, "subprocess", Forked)
    flower_superexec()


def _client_app() -> None:
    from flwr.supernode.cli import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp

    def without_text(code: int, reason: str | None = None) -> Error:
        return Error(code, "the company's app could not be run; its own log says why")

    def pulled(client: Any) -> Any:
        """The message and what belongs to it; ends this process if these are not as expected."""
        try:
            message, context, *rest = pull(client)
            metadata = message.metadata
            ours = (context.run_id, context.node_id, "")
            if (metadata.run_id, metadata.dst_node_id, metadata.reply_to_message_id) != ours:
                raise ValueError("the message is for another node")
            return message, context, *rest
        except Exception as error:
            # There is no message to answer. If the task is reported as failed it is never answered, and the SuperNode
            # waits for ever; if its process ends without a report the SuperNode answers.
            print(
                f"dropped a message of the wrong form ({type(error).__name__})", file=sys.stderr, flush=True
            )
            os._exit(1)

    put_in_place(run_clientapp, "Error", without_text)
    pull = put_in_place(run_clientapp, "pull_task_input", pulled)
    flwr_clientapp()


if __name__ == "__main__":
    main(*sys.argv[1:])
