"""Companies in processes of this machine: for more cores than one Python process keeps busy.

A company stays with one process, which keeps its state between messages; messages travel as bytes over a pipe. The
processes end with this one, however it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection

import torch
from flwr.app import Context, Message

from ....client.app import app
from ....errors import RunError
from ....glibc_malloc import keep_freed_memory
from ....protocol.transport.records import stamp_messages
from ....server.grid import InProcessGrid, from_wire, to_wire
from .nodes import Nodes

_END = 10.0  # seconds that a process has once its pipe is closed


class Worker:
    """One process, and the thread that talks to it: one message at a time."""

    def __init__(self, nodes: Nodes) -> None:
        context = multiprocessing.get_context("spawn")  # threads have run here: a fork may hang
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(nodes, there), daemon=True)
        self._process.start()
        there.close()
        self.thread = ThreadPoolExecutor(1)

    def ask(self, message: Message) -> Message:
        """Raises: RunError where the process has ended."""
        try:
            self._pipe.send_bytes(to_wire(message))
            return from_wire(self._pipe.recv_bytes())
        except (EOFError, OSError):
            self._process.join(_END)
            raise RunError(_why(self._process.exitcode)) from None

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)
        self._pipe.close()
        self._process.join(_END)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class ProcessGrid(InProcessGrid):
    """Node i is with worker i modulo their number, so that neighbours compute at once."""

    def __init__(self, nodes: Nodes, workers: int) -> None:
        super().__init__(app, len(nodes.names), nodes.run_config, 1, nodes.names)
        self._processes = [Worker(nodes) for _ in range(min(workers, len(nodes.names)))]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        asked = []
        for message in map(self._stamped, messages):
            worker = self._processes[message.metadata.dst_node_id % len(self._processes)]
            asked.append((message.metadata.message_id, worker.thread.submit(worker.ask, message)))
        for name, answer in asked:
            self._replies[name] = answer.result()
        return [name for name, _ in asked]

    def close(self) -> None:
        super().close()
        for worker in self._processes:
            worker.close()


def begin_worker() -> None:
    """In a process of its own: one core, and its end when the parent ends, which alone takes signals from people."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    keep_freed_memory()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _serve(nodes: Nodes, pipe: Connection) -> None:
    begin_worker()
    stamp_messages()
    contexts: dict[int, Context] = {}
    with suppress(EOFError, OSError):  # the parent has closed the pipe
        while True:
            message = from_wire(pipe.recv_bytes())
            node = message.metadata.dst_node_id
            context = contexts.setdefault(node, nodes.context(node))
            pipe.send_bytes(to_wire(app(message, context)))


def _why(code: int | None) -> str:
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return f"a process with companies was ended by the machine ({how}), perhaps for want of memory"
