"""What happens to a real process at a chosen point: it is killed there, or what it sends is changed.

Called in the process before its command begins; they are pickled, so each is a dataclass.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import RecordDict


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _around(owner: Any, name: str, *, before: Callable[..., Any], after: Callable[..., Any]) -> None:
    wrapped = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        before(*arguments, **named)
        result = wrapped(*arguments, **named)
        after(*arguments, **named)
        return result

    setattr(owner, name, call)


def _nothing(*arguments: Any, **named: Any) -> None:
    pass


@dataclass(frozen=True)
class KilledInPhase:
    """An agent that is killed (SIGKILL) at its first message of a phase: before it is handled, or once it is and
    before its answer leaves."""

    phase: str
    handled: bool

    def __call__(self) -> None:
        from fedblocks.client.agent import Agent

        def dies(agent: Any, message: Any) -> None:
            if message.kind == self.phase:
                _die()

        _around(
            Agent, "_answer",
            before=_nothing if self.handled else dies, after=dies if self.handled else _nothing,
        )  # fmt: skip


@dataclass(frozen=True)
class KilledAt:
    """A process that is killed when a function of it is called for the n-th time: before it, or after it."""

    module: str
    owner: str
    name: str
    after: bool
    times: int = 1

    def __call__(self) -> None:
        import importlib

        seen = 0

        def dies(*arguments: Any, **named: Any) -> None:
            nonlocal seen
            seen += 1
            if seen == self.times:
                _die()

        owner: Any = importlib.import_module(self.module)
        if self.owner:
            owner = getattr(owner, self.owner)
        _around(
            owner, self.name,
            before=_nothing if self.after else dies, after=dies if self.after else _nothing,
        )  # fmt: skip
