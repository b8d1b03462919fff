"""What happens to a real process at a chosen point: it is killed there, or what it sends is changed.

Called in the process before its command begins; they are pickled, so each is a dataclass.
"""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


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
class At:
    """`do` is called in a process when a function of it is called for the n-th time: before it, or after it.

    `function`: as "fedblocks.server.secure_sum:SecureSum.keys". `do`: what comes then, SIGKILL unless given.
    """

    function: str
    after: bool = False
    times: int = 1
    do: Callable[[], None] = _die

    def __call__(self) -> None:
        seen = 0

        def now(*arguments: Any, **named: Any) -> None:
            nonlocal seen
            seen += 1
            if seen == self.times:
                self.do()

        module, _, path = self.function.partition(":")
        *owners, name = path.split(".")
        owner: Any = importlib.import_module(module)
        for each in owners:
            owner = getattr(owner, each)
        _around(owner, name, before=_nothing if self.after else now, after=now if self.after else _nothing)


@dataclass(frozen=True)
class WrongVector:
    """An agent that sends a wrong masked vector, in the rounds `rounds` of those that it trains in.

    `how`: values of another type (nan, infinite), another length (short), more bytes than were asked for (long), the
    vector of the round before (stale), or one of random values (random).
    """

    how: str
    rounds: tuple[int, ...]

    def __call__(self) -> None:
        from fedblocks.client.agent import Agent
        from fedblocks.protocol.messages import TRAIN, TrainReply
        from fedblocks.protocol.transport.records import decode, encode

        answer, seen, before = Agent._answer, 0, b""

        def changed(agent: Any, message: Any) -> bytes:
            nonlocal seen, before
            honest = answer(agent, message)
            if message.kind != TRAIN:
                return honest
            seen += 1
            now, before = before, honest
            if seen not in self.rounds:
                return honest
            if self.how == "stale":
                return now
            vector = TrainReply.from_record(decode(honest)).masked
            wrong = {
                "nan": np.full(len(vector) // 4, np.nan, np.float32).view(np.uint8),
                "infinite": np.full(len(vector) // 4, np.inf, np.float32).view(np.uint8),
                "short": vector[: len(vector) // 2],
                "long": np.zeros(64 << 20, np.uint8),
                "random": np.random.default_rng(0).integers(0, 256, len(vector), np.uint8),
            }[self.how]
            return encode(TrainReply(wrong).to_record())

        Agent._answer = changed  # type: ignore[method-assign]


@dataclass(frozen=True)
class WrongStates:
    """A coordinator that sends all companies wrong block states, in its `attempt`-th round: not finite (nan,
    infinite), of other shapes (short), or in a message of more bytes than they take (long)."""

    how: str
    attempt: int

    def __call__(self) -> None:
        from fedblocks.server import coordinator

        run_round, seen = coordinator.run_round, 0

        def wrong(tensor: torch.Tensor) -> torch.Tensor:
            if self.how == "short":
                return tensor[..., :1].clone()
            if self.how == "long":
                return tensor.flatten().repeat(1 + (4 << 20) // tensor.numel())
            return torch.full_like(tensor, float(self.how))

        def changed(round_: int, task: Any, states: Any, *rest: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == self.attempt:
                states = {b: {name: wrong(t) for name, t in state.items()} for b, state in states.items()}
            return run_round(round_, task, states, *rest)

        coordinator.run_round = changed


@dataclass(frozen=True)
class StaleRequests:
    """A coordinator that sends all companies, once, the messages of the round before in place of a phase's own."""

    phase: str
    time: int

    def __call__(self) -> None:
        from fedblocks.server.cohort import Cohort

        ask, seen, before = Cohort.ask, 0, {}

        def stale(cohort: Any, phase: str, group: str, requests: Any, parse: Any) -> Any:
            nonlocal seen, before
            if phase == self.phase:
                seen += 1
                now, before = before, requests
                requests = now if seen == self.time else requests
            return ask(cohort, phase, group, requests, parse)

        Cohort.ask = stale  # type: ignore[method-assign]


@dataclass(frozen=True)
class Paced:
    """An agent that takes its time for every training, so that a run lasts long enough for a fault within it."""

    seconds: float

    def __call__(self) -> None:
        from fedblocks.client.agent import Agent
        from fedblocks.protocol.messages import TRAIN

        def waits(agent: Any, message: Any) -> None:
            if message.kind == TRAIN:
                time.sleep(self.seconds)

        _around(Agent, "_answer", before=waits, after=_nothing)
