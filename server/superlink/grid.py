"""The Grid of a run over the SuperLink that the coordinator keeps.

Flower's own HttpGrid carries the messages. What is added: companies by name, since their nodes are registered with
the keys of the roster; a look for replies every quarter of a second in place of every three; and a SuperLink that is
away for a while. Its database keeps the messages under way, so that a phase goes on once it is back. Where Flower has
ended the run meanwhile, another Flower run carries on with this one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.superlink.grid import HttpGrid
from httpx import HTTPStatusError

from ...errors import RunError
from ...protocol.repeating import repeated
from ...protocol.transport.records import stamp_messages
from ..grid import OwnGrid
from .control import LINK_ERRORS, Control, Task

log = logging.getLogger("fedblocks.transport")

_POLL, _BEAT = 0.25, 10.0


class SuperLinkGrid(OwnGrid):
    """grid = SuperLinkGrid(Control(place.socket), place.node_keys)

    with grid.running():
        coordinate(grid, run, patience=...)

    `keys`: the public node keys of the companies, by name, as the roster has them by now. Who is not among them is no
    node of this grid.
    """

    def __init__(self, control: Control, keys: Callable[[], Mapping[str, bytes]]) -> None:
        self._control, self._keys = control, keys
        self._lock = threading.Lock()
        self._task: Task | None = None
        self._away = False
        self.names: dict[int, str] = {}
        stamp_messages()

    @contextmanager
    def running(self) -> Iterator[None]:
        """A Flower run, as long as the block lasts. Raises: RunError where the SuperLink does not start one."""
        try:
            self._held()
        except LINK_ERRORS as error:
            raise RunError(f"the SuperLink does not start a run ({type(error).__name__})") from None
        done = False
        try:
            with repeated(self._beat, _BEAT):
                yield
                done = True
        finally:
            task, self._task = self._task, None
            if task is not None:
                with suppress(*LINK_ERRORS):
                    task.end(done=done)
                task.client.close()

    @property
    def connected(self) -> tuple[str, ...]:
        """Companies whose nodes are online."""
        return tuple(sorted(self.names[node] for node in self.get_node_ids()))

    def get_node_ids(self) -> Iterable[int]:
        """Nodes of companies that are online; none while the SuperLink is away."""
        try:
            nodes = self._held().nodes()
        except (*LINK_ERRORS, RunError) as error:
            self._lost(error)
            return []
        self._back()
        owners = {key: name for name, key in self._keys().items()}
        online = {node.node_id: owners[node.public_key] for node in nodes if node.public_key in owners}
        self.names = self.names | online
        return sorted(online)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Replies until all are there or time is up. If the SuperLink is away for a while they come later."""
        if timeout is None:
            raise NotImplementedError("a timeout")
        deadline, sent = time.monotonic() + timeout, list(messages)
        try:
            task = self._held()
            waiting = self._pushed(task, sent)
        except (*LINK_ERRORS, RunError) as error:
            self._lost(error)
            return []
        replies: list[Message] = []
        while waiting:
            try:
                arrived = list(self._flower(task).pull_messages(waiting))
            except LINK_ERRORS as error:
                self._lost(error)
                if self._ended(task):
                    break
                arrived = []
            else:
                self._back()
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            if not waiting or time.monotonic() > deadline:
                break
            time.sleep(_POLL)
        return replies

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError("a run sends and receives at once")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError("a run sends and receives at once")

    def _pushed(self, task: Task, messages: list[Message]) -> set[str]:
        for message in messages:  # they may have been made before another Flower run took over
            message.metadata.__dict__.update(
                _run_id=task.run.run_id, _src_task_id=task.number, _src_node_id=SUPERLINK_NODE_ID
            )
        return {number for number in self._flower(task).push_messages(messages) if number}

    def _flower(self, task: Task) -> HttpGrid:
        grid = HttpGrid(token=task.token)
        grid._client = task.client
        grid.set_run(task.run)
        return grid

    def _held(self) -> Task:
        """The task, a new one if Flower has ended it. Raises: one of LINK_ERRORS, or RunError."""
        with self._lock:
            if self._task is None:
                self._task = self._control.begin()
                log.info("Flower run %d carries the messages", self._task.run.run_id)
            return self._task

    def _beat(self) -> None:
        task = self._task
        if task is not None:
            self._ended(task)

    def _ended(self, task: Task) -> bool:
        """Whether Flower has ended the task; the next message then begins another."""
        try:
            ended = not task.beat()
        except LINK_ERRORS:
            return False
        with self._lock:
            if ended and self._task is task:
                self._task = None
                log.warning("Flower has ended run %d; another one carries on", task.run.run_id)
        return ended

    def _lost(self, error: BaseException) -> None:
        if not self._away:
            self._away = True
            code = error.response.status_code if isinstance(error, HTTPStatusError) else type(error).__name__
            log.warning("the SuperLink does not take messages (%s)", code)

    def _back(self) -> None:
        if self._away:
            self._away = False
            log.warning("the SuperLink takes messages again")
