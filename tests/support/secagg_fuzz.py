"""Fuzzing of every decoder: what is accepted has one encoding, what is not is a ProtocolError, and both come soon.

`test_secure_aggregation_fuzz.py` mutates valid messages from a seed; `fuzz_secure_aggregation.py` lets Atheris look.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedblocks.errors import ProtocolError
from fedblocks.privacy.secure_aggregation import (
    Advert,
    ChannelKeys,
    CompanySession,
    Confirmation,
    Confirmations,
    Session,
    Survivors,
    UnmaskShares,
    packing,
)
from support.secagg import NAMES, Cohort, a_session

# Lengths and counts that have been anybody's undoing.
WORDS = [
    w.to_bytes(4, "big") for w in (0, 1, 2, 127, 128, 129, 999, 1001, 1 << 16, 1 << 24, 2**31, 2**32 - 1)
]


@dataclass(frozen=True)
class Target:
    """`decode` raises ProtocolError or returns something whose `to_bytes` gives the input back."""

    name: str
    decode: Callable[[bytes], Any]
    corpus: tuple[bytes, ...]


class Packed:
    """A packed vector of 50 values of 22 bits, as a decoder."""

    def __init__(self, residues: np.ndarray) -> None:
        self.residues = residues

    @classmethod
    def from_bytes(cls, data: bytes) -> Packed:
        return cls(packing.unpack(np.frombuffer(data, np.uint8), 50, 22))

    def to_bytes(self) -> bytes:
        return packing.pack(self.residues, 22).tobytes()


def targets() -> list[Target]:
    cohort = Cohort(a_session(4, run="zürich", bits=22))
    masked, confirmed, done = (cohort.masked("bob") for _ in range(3))
    packed = cohort.reloaded("bob").mask(cohort.vectors["bob"], cohort.adverts_for("bob"))
    survivors = cohort.survivors(NAMES[:3])
    confirmation = confirmed.confirm(survivors)
    done.confirm(survivors)
    proof = cohort.confirmations(NAMES[:3], NAMES[:3])
    answer = done.unmask(proof)
    channel, bob = cohort.keys["bob"], cohort.members["bob"]
    states = (cohort.companies["bob"], masked, confirmed, done)
    ada = cohort.adverts["ada"]
    return [
        Target("session", Session.from_bytes, (cohort.session.to_bytes(),)),
        Target("advert", Advert.from_bytes, (ada.to_bytes(), ada.for_recipient("bob").to_bytes())),
        Target("survivors", Survivors.from_bytes, (survivors.to_bytes(),)),
        Target("confirmation", Confirmation.from_bytes, (confirmation.to_bytes(),)),
        Target("confirmations", Confirmations.from_bytes, (proof.to_bytes(),)),
        Target("shares", UnmaskShares.from_bytes, (answer.to_bytes(),)),
        Target(
            "channel keys", ChannelKeys.from_bytes, (channel.to_bytes(), ChannelKeys.generate().to_bytes())
        ),
        Target(
            "company",
            lambda data: CompanySession.from_bytes(data, bob),
            tuple(state.to_bytes() for state in states),
        ),
        Target("packed vector", Packed.from_bytes, (packed.tobytes(),)),
    ]


def attempt(target: Target, data: bytes) -> bool:
    """Whether `data` is accepted; raises whatever should never be raised."""
    try:
        message = target.decode(data)
    except ProtocolError:
        return False
    if message.to_bytes() != data:
        raise AssertionError(f"{target.name}: a second encoding, {data.hex()}")
    return True


def mutated(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """One to three of: a bit, a byte, a word set; bytes cut, repeated, inserted; the rest of another message."""
    out = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(out) + 1)
        kind = draw.randrange(8)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = draw.randrange(256)
        elif kind == 2:
            out[at : at + 4] = draw.choice(WORDS)
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            del out[at : at + draw.randint(1, 40)]
        elif kind == 5:
            out[at:at] = out[at : at + draw.randint(1, 200)]
        elif kind == 6:
            out[at:at] = draw.randbytes(draw.randint(1, 40))
        else:
            out[at:] = other[draw.randrange(len(other) + 1) :]
    return bytes(out)
