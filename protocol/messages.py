"""The messages of a run: requests to a company's app and its replies.

Five phases, each with one Flower message to a company and one back:

    join      once a run: plan and shared state -> company name and signed channel key
    keys      every round: session and channel keys -> mask key and encrypted shares, signed
    train     every round: block state and adverts -> masked update, packed
    confirm   every round: survivors -> signature over their set
    unmask    every round: signatures -> shares of the masks to remove

an evaluation is a round with `evaluate` in the place of `train`: all block states and adverts -> masked sums;
after the last round, `deliver` in a few messages: the final model, in parts -> whether the company has it all; and,
where there is a data plane, `stream` once before all of them: the run's name -> how its stream ended.

A company that refuses answers with a fixed code and nothing else. Every decoder (`from_record`) checks names, types
and sizes and raises ProtocolError("malformed"), whoever sent the message.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from ..blocks.settings import MOST_BLOCKS
from ..blocks.state import State, digest
from ..blocks.state_bytes import from_bytes, to_bytes
from ..errors import FedblocksError, ProtocolError
from ..privacy.secure_aggregation import (
    Advert,
    ChannelKey,
    Confirmation,
    Confirmations,
    Session,
    Survivors,
    UnmaskShares,
)
from ..settings import Plan, validated_json
from .transport.records import ARRAYS, MESSAGE, bytes_array

_CODE = re.compile(r"[a-z_]{1,64}")
_PART = re.compile(r"(public|final)-(0|[1-9][0-9]{0,3})")
_LONGEST_CARD = 1 << 20

JOIN, KEYS, TRAIN = "query.join", "query.keys", "train.block"
EVALUATE = "evaluate.model"
CONFIRM, UNMASK = "query.confirm", "query.unmask"
DELIVER = "query.deliver"
STREAM = "query.stream"
PHASES = {
    JOIN: "join", KEYS: "keys", TRAIN: "train", EVALUATE: "evaluate", CONFIRM: "confirm", UNMASK: "unmask",
}  # fmt: skip
"""What a request begins, for people and figures."""

V = TypeVar("V")


@dataclass(frozen=True)
class JoinRequest:
    plan: Plan
    shared: State

    def digest(self) -> bytes:
        """SHA-256 of the plan and shared state that a company joins; companies with other digests do not sum with it.

        It covers the shared state: else one company could be given other frozen parts, chosen so that the others'
        updates vanish from the sum.
        """
        return hashlib.sha256(self.plan.digest() + digest(self.shared)).digest()

    def to_record(self) -> RecordDict:
        return _record({"plan": self.plan.model_dump_json()}, {"shared": to_bytes(self.shared)})

    @classmethod
    def from_record(cls, record: RecordDict) -> JoinRequest:
        plan = validated_json(Plan, _field(record, "plan", str))
        return cls(plan, from_bytes(_only_array(record, "shared")))


@dataclass(frozen=True)
class JoinReply:
    company: str
    channel: ChannelKey
    roster: Mapping[str, bytes] = field(
        default_factory=dict
    )  # the company's, to say in whom two rosters differ

    def to_record(self) -> RecordDict:
        channel = {"channel": self.channel.public, "signature": self.channel.signature}
        names = sorted(self.roster)
        roster = {"members": names, "identities": [self.roster[name] for name in names]}
        return _record({"company": self.company, **channel, **roster})

    @classmethod
    def from_record(cls, record: RecordDict) -> JoinReply:
        channel = ChannelKey(_field(record, "channel", bytes), _field(record, "signature", bytes))
        return cls(_field(record, "company", str), channel, _named(record, "members", "identities"))


@dataclass(frozen=True)
class KeysRequest:
    session: Session
    channels: dict[str, ChannelKey]

    def to_record(self) -> RecordDict:
        names = sorted(self.channels)
        return _record(
            {
                "session": self.session.to_bytes(),
                "companies": names,
                "channels": [self.channels[name].public for name in names],
                "signatures": [self.channels[name].signature for name in names],
            }
        )

    @classmethod
    def from_record(cls, record: RecordDict) -> KeysRequest:
        session = Session.from_bytes(_field(record, "session", bytes))
        channels = _named(record, "companies", "channels")
        signatures = _named(record, "companies", "signatures")
        return cls(session, {name: ChannelKey(channels[name], signatures[name]) for name in channels})


@dataclass(frozen=True)
class KeysReply:
    advert: Advert

    def to_record(self) -> RecordDict:
        return _record({"advert": self.advert.to_bytes()})

    @classmethod
    def from_record(cls, record: RecordDict) -> KeysReply:
        return cls(Advert.from_bytes(_field(record, "advert", bytes)))


@dataclass(frozen=True)
class TrainRequest:
    """`states`: those of the block to train and of the blocks that it reads, in order (see `blocks_read`)."""

    block: int
    states: dict[int, State]
    adverts: dict[str, Advert]

    @classmethod
    def for_each(
        cls, block: int, states: dict[int, State], adverts: Mapping[str, Advert]
    ) -> dict[str, TrainRequest]:
        """A request for every company that has sent an advert, with only the shares that are sealed for it."""
        return {
            company: cls(block, states, {peer: a.for_recipient(company) for peer, a in adverts.items()})
            for company in adverts
        }

    def to_record(self) -> RecordDict:
        names = sorted(self.adverts)
        return _record(
            {
                "block": self.block,
                "companies": names,
                "adverts": [self.adverts[name].to_bytes() for name in names],
            },
            {f"block-{block}": to_bytes(state) for block, state in self.states.items()},
        )

    @classmethod
    def from_record(cls, record: RecordDict) -> TrainRequest:
        adverts = {
            name: Advert.from_bytes(advert) for name, advert in _named(record, "companies", "adverts").items()
        }
        block = _field(record, "block", int)
        held = _arrays(record)
        # Before any is read: a tensor takes ten times the room of what declares it.
        if len(held) > MOST_BLOCKS:
            raise ProtocolError("malformed", f"more than {MOST_BLOCKS} block states")
        # In a row, the block to train among them.
        first = block
        while f"block-{first - 1}" in held:
            first -= 1
        blocks = range(first, first + len(held))
        if block not in blocks or set(held) != {f"block-{b}" for b in blocks}:
            raise ProtocolError("malformed", "the block states are not those around the block to train")
        return cls(block, {b: from_bytes(held[f"block-{b}"].data) for b in blocks}, adverts)


@dataclass(frozen=True)
class EvaluateRequest:
    """`states`: those of all blocks, in order; `adverts` as in `TrainRequest`. The reply is a training's."""

    states: dict[int, State]
    adverts: dict[str, Advert]

    @classmethod
    def for_each(cls, states: dict[int, State], adverts: Mapping[str, Advert]) -> dict[str, EvaluateRequest]:
        """As `TrainRequest.for_each`."""
        last = max(states)
        made = TrainRequest.for_each(last, states, adverts)
        return {company: cls(request.states, request.adverts) for company, request in made.items()}

    def to_record(self) -> RecordDict:
        return TrainRequest(max(self.states), self.states, self.adverts).to_record()

    @classmethod
    def from_record(cls, record: RecordDict) -> EvaluateRequest:
        found = TrainRequest.from_record(record)
        if [*found.states] != [*range(found.block + 1)]:
            raise ProtocolError("malformed", "the block states are not those from the first to the last")
        return cls(found.states, found.adverts)


@dataclass(frozen=True)
class TrainReply:
    """`masked`: the packed masked vector, as `CompanySession.mask` returns it."""

    masked: npt.NDArray[np.uint8]

    def to_record(self) -> RecordDict:
        return _record({}, {"masked": self.masked.tobytes()})

    @classmethod
    def from_record(cls, record: RecordDict) -> TrainReply:
        return cls(np.frombuffer(_only_array(record, "masked"), np.uint8))


@dataclass(frozen=True)
class ConfirmRequest:
    survivors: Survivors

    def to_record(self) -> RecordDict:
        return _record({"survivors": self.survivors.to_bytes()})

    @classmethod
    def from_record(cls, record: RecordDict) -> ConfirmRequest:
        return cls(Survivors.from_bytes(_field(record, "survivors", bytes)))


@dataclass(frozen=True)
class ConfirmReply:
    confirmation: Confirmation

    def to_record(self) -> RecordDict:
        return _record({"confirmation": self.confirmation.to_bytes()})

    @classmethod
    def from_record(cls, record: RecordDict) -> ConfirmReply:
        return cls(Confirmation.from_bytes(_field(record, "confirmation", bytes)))


@dataclass(frozen=True)
class UnmaskRequest:
    confirmations: Confirmations

    def to_record(self) -> RecordDict:
        return _record({"confirmations": self.confirmations.to_bytes()})

    @classmethod
    def from_record(cls, record: RecordDict) -> UnmaskRequest:
        return cls(Confirmations.from_bytes(_field(record, "confirmations", bytes)))


@dataclass(frozen=True)
class UnmaskReply:
    shares: UnmaskShares

    def to_record(self) -> RecordDict:
        return _record({"shares": self.shares.to_bytes()})

    @classmethod
    def from_record(cls, record: RecordDict) -> UnmaskReply:
        return cls(UnmaskShares.from_bytes(_field(record, "shares", bytes)))


@dataclass(frozen=True)
class DeliverRequest:
    """One of `count` parts of a finished run's model.

    `joined`: the digest of the joined plan and shared state (`JoinRequest.digest`); `card`: what the model is, in
    JSON (`blocks.model_file.ModelCard`). Of a block `public` has the whole state of round 0, and `final` the tensors
    that have changed since.
    """

    joined: bytes
    card: str
    part: int
    count: int
    public: Mapping[int, State]
    final: Mapping[int, State]

    def to_record(self) -> RecordDict:
        states = {f"public-{b}": s for b, s in self.public.items()}
        states |= {f"final-{b}": s for b, s in self.final.items()}
        return _record(
            {"joined": self.joined, "card": self.card, "part": self.part, "count": self.count},
            {name: to_bytes(state) for name, state in states.items()},
        )

    @classmethod
    def from_record(cls, record: RecordDict) -> DeliverRequest:
        part, count, card = (
            _field(record, "part", int),
            _field(record, "count", int),
            _field(record, "card", str),
        )
        held = _arrays(record)
        if not 0 <= part < count <= 2 * MOST_BLOCKS or not 0 < len(held) <= 2 * MOST_BLOCKS:
            raise ProtocolError("malformed", "no part of a model")
        if len(card) > _LONGEST_CARD:
            raise ProtocolError("malformed", "the card is too long")
        names = {name: _PART.fullmatch(name) for name in held}
        states: dict[str, dict[int, State]] = {"public": {}, "final": {}}
        for name, match in names.items():
            if match is None:
                raise ProtocolError("malformed", "no state of a block")
            states[match[1]][int(match[2])] = from_bytes(held[name].data)
        joined = _field(record, "joined", bytes)
        return cls(joined, card, part, count, states["public"], states["final"])


@dataclass(frozen=True)
class DeliverReply:
    """`kept`: the company has the whole model; else it takes the next part."""

    kept: bool

    def to_record(self) -> RecordDict:
        return _record({"kept": self.kept})

    @classmethod
    def from_record(cls, record: RecordDict) -> DeliverReply:
        return cls(_field(record, "kept", bool))


@dataclass(frozen=True)
class StreamRequest:
    """`wait`: seconds in which the coordinator expects the connection; its address is in the company's own file."""

    run: str
    wait: float

    def to_record(self) -> RecordDict:
        return _record({"run": self.run, "wait": self.wait})

    @classmethod
    def from_record(cls, record: RecordDict) -> StreamRequest:
        return cls(_field(record, "run", str), _field(record, "wait", float))


@dataclass(frozen=True)
class StreamReply:
    ended: str
    answered: int

    def to_record(self) -> RecordDict:
        return _record({"ended": self.ended, "answered": self.answered})


def refusal(error: Exception) -> RecordDict:
    """The answer of a handler that fails: a fixed code, never a text."""
    return _record({"refused": error.code if isinstance(error, FedblocksError) else FedblocksError.code})


def refused(record: RecordDict) -> str | None:
    """The code of a refusal, or none if the message is an answer."""
    code = _message(record).get("refused")
    if code is None:
        return None
    # Checked, since it is written to logs and reports.
    return code if isinstance(code, str) and _CODE.fullmatch(code) else "malformed"


def _record(values: dict[str, Any], arrays: Mapping[str, bytes] | None = None) -> RecordDict:
    """Small fields, and large values as arrays, which Flower sends in chunks."""
    record = RecordDict({MESSAGE: ConfigRecord(values)})
    if arrays:
        record[ARRAYS] = ArrayRecord({name: bytes_array(data) for name, data in arrays.items()})
    return record


def _message(record: RecordDict) -> ConfigRecord:
    found = record.get(MESSAGE)
    return found if isinstance(found, ConfigRecord) else ConfigRecord()


def _arrays(record: RecordDict) -> ArrayRecord:
    found = record.get(ARRAYS)
    return found if isinstance(found, ArrayRecord) else ArrayRecord()


def _only_array(record: RecordDict, name: str) -> bytes:
    """The bytes of the one array; the type and shape that Flower sends with it are ignored."""
    arrays = _arrays(record)
    if set(arrays) != {name}:
        raise ProtocolError("malformed", f"expected one array, {name}")
    return arrays[name].data


def _field(record: RecordDict, name: str, kind: type[V]) -> V:
    value = _message(record).get(name)
    if type(value) is not kind:
        raise ProtocolError("malformed", f"field {name} is not {kind.__name__}")
    return value


def _list(record: RecordDict, name: str, kind: type[V]) -> list[V]:
    values = _field(record, name, list)
    if not all(type(value) is kind for value in values):
        raise ProtocolError("malformed", f"field {name} is not a list of {kind.__name__}")
    return list(values)


def _named(record: RecordDict, keys: str, values: str) -> dict[str, bytes]:
    names, items = _list(record, keys, str), _list(record, values, bytes)
    if len(set(names)) != len(names) or len(names) != len(items):
        raise ProtocolError("malformed", f"{keys} and {values} do not pair up")
    return dict(zip(names, items, strict=True))
