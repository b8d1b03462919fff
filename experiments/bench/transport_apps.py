"""Flower apps that do one secure sum and nothing else: no model, no training, no ledger; residues lie ready.

The messages are the run's own and as large as they: a block goes down, a masked vector of its size comes up.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from ...privacy.secure_aggregation import (
    ChannelKeys,
    CompanySession,
    Identity,
    Member,
    Roster,
    Session,
    lowest_threshold,
)
from ...protocol.messages import (
    JOIN,
    ConfirmReply,
    ConfirmRequest,
    JoinReply,
    KeysReply,
    KeysRequest,
    TrainReply,
    TrainRequest,
    UnmaskReply,
    UnmaskRequest,
)
from ...server.cohort import Cohort, wait_for_nodes
from ...server.secure_sum import Absences, SecureSum

COMPANIES = 5
_BITS = 22
_RUN, _SETTINGS = "bench", bytes(32)

party = ClientApp()
coordinator = ServerApp()


@party.query("join")
def join(message: Message, context: Context) -> Message:
    """Channel keys for the run."""
    channel = ChannelKeys.generate()
    context.state["run"] = ConfigRecord({"channel": channel.to_bytes()})
    own = _member(context)
    return Message(JoinReply(own.name, channel.signed(own, _RUN, _SETTINGS)).to_record(), reply_to=message)


@party.query("keys")
def keys(message: Message, context: Context) -> Message:
    """Fresh keys and shares."""
    request = KeysRequest.from_record(message.content)
    channel = ChannelKeys.from_bytes(_stored(context, "run", "channel"))
    session = CompanySession.start(request.session, _member(context), channel, request.channels, 3)
    _store(context, session)
    return Message(KeysReply(session.advert()).to_record(), reply_to=message)


@party.train("block")
def train(message: Message, context: Context) -> Message:
    """Mask what lies ready."""
    request = TrainRequest.from_record(message.content)
    session = _session(context)
    session.check_adverts(request.adverts)
    masked = session.mask(residues(session.session.length, session.me), request.adverts)
    _store(context, session)
    return Message(TrainReply(masked).to_record(), reply_to=message)


@party.query("confirm")
def confirm(message: Message, context: Context) -> Message:
    """A signature over the survivors."""
    session = _session(context)
    confirmation = session.confirm(ConfirmRequest.from_record(message.content).survivors)
    _store(context, session)
    return Message(ConfirmReply(confirmation).to_record(), reply_to=message)


@party.query("unmask")
def unmask(message: Message, context: Context) -> Message:
    """The shares that open the sum."""
    session = _session(context)
    shares = session.unmask(UnmaskRequest.from_record(message.content).confirmations)
    _store(context, session)
    return Message(UnmaskReply(shares).to_record(), reply_to=message)


@lru_cache(maxsize=8)
def residues(length: int, company: str) -> npt.NDArray[np.uint32]:
    """What a company gives to the sum: a function of its name, so that the opened sum can be checked."""
    seed = int(company.removeprefix("company-"))
    return np.random.default_rng(seed).integers(0, 2**_BITS, length, dtype=np.uint32)


def gather(grid: Grid, companies: int, wait: float, timeout: float) -> Cohort:
    """Wait for the companies and collect their channel keys."""
    nodes = wait_for_nodes(grid, companies, wait)
    messages = [Message(RecordDict(), node, JOIN, group_id="join", ttl=timeout) for node in nodes]
    found, channels = {}, {}
    for reply in grid.send_and_receive(messages, timeout=timeout):
        answer = JoinReply.from_record(reply.content)
        found[answer.company] = reply.metadata.src_node_id
        channels[answer.company] = answer.channel
    return Cohort(grid, found, channels, roster(), _SETTINGS, timeout)


def secure_step(cohort: Cohort, step: int, values: int) -> dict[str, float]:
    """One secure sum of `values` values; seconds by phase. Raises if the opened sum is not the sum."""
    names = cohort.companies
    session = Session(
        run=_RUN, round=step, label="block-0", model_digest=bytes(32), settings_digest=_SETTINGS,
        cohort=names, threshold=lowest_threshold(len(names)), length=values, bits=_BITS,
    )  # fmt: skip
    absences, seconds = Absences(), dict[str, float]()
    secure_sum = SecureSum(session, cohort, f"step-{step}", absences)
    with _timed(seconds, "keys"):
        adverts = secure_sum.keys()
    with _timed(seconds, "upload"):
        survivors = secure_sum.train(0, {0: {"block": _block(values)}}, adverts)
    with _timed(seconds, "confirm"):
        confirmations = secure_sum.confirm(survivors)
    with _timed(seconds, "unmask"):
        total, _ = secure_sum.unmask(confirmations)

    if absences.why or not np.array_equal(total, _expected(values, names)):
        raise RuntimeError(f"the opened sum is not the companies' sum; absent: {absences.why}")
    return seconds


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - started


@lru_cache(maxsize=2)
def _expected(values: int, names: tuple[str, ...]) -> npt.NDArray[np.uint32]:
    total = np.zeros(values, dtype=np.uint32)
    for name in names:
        total += residues(values, name)
    total &= np.uint32(2**_BITS - 1)
    return total


@lru_cache(maxsize=2)
def _block(values: int) -> torch.Tensor:
    return torch.zeros(values)


@lru_cache(maxsize=8)
def _identity(name: str) -> Identity:
    """Known to everybody: it saves handing rosters around, and the arithmetic is the same."""
    return Identity(hashlib.sha256(name.encode()).digest())


@lru_cache(maxsize=1)
def roster() -> Roster:
    return Roster({name: _identity(name).public for name in map("company-{}".format, range(COMPANIES))})


def _member(context: Context) -> Member:
    name = f"company-{context.node_config['partition-id']}"
    return Member(name, _identity(name), roster())


def _session(context: Context) -> CompanySession:
    return CompanySession.from_bytes(_stored(context, "session", "session"), _member(context))


def _stored(context: Context, record: str, name: str) -> bytes:
    found = context.state[record]
    assert isinstance(found, ConfigRecord)
    value = found[name]
    assert isinstance(value, bytes)
    return value


def _store(context: Context, session: CompanySession) -> None:
    context.state["session"] = ConfigRecord({"session": session.to_bytes()})


@coordinator.main()
def main(grid: Grid, context: Context) -> None:
    """One secure step through Flower's messages; writes the seconds by phase to `out`."""
    cohort = gather(grid, COMPANIES, wait=120.0, timeout=120.0)
    seconds = secure_step(cohort, 1, int(str(context.run_config["values"])))
    Path(str(context.run_config["out"])).write_text(json.dumps(seconds), "utf-8")
