"""Whether the masks of secure sums hide: uniform, and no key in two sums.

Two sums with one mask reveal the difference of what they hide. A pair's mask is as bad as a company's own: the
coordinator removes the other one.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from ...privacy.secure_aggregation import (
    ChannelKeys,
    CompanySession,
    Identity,
    Member,
    Roster,
    Session,
    lowest_threshold,
    masks,
    packing,
)
from . import checks
from .checks import Check
from .seams import replaced

_BINS_BITS = 8
Masked = npt.NDArray[np.uint32]


def audit_masks(level: float, *, bits: int, companies: int = 3, length: int = 20_000) -> list[Check]:
    """Two sums by `companies` companies of vectors of zeros, so that what is sent is masks alone.

    Their keys are fresh, as in a run: at most one in 1 / `level` of its tests alarms by chance.
    """
    keys: list[Counter[bytes]] = [Counter(), Counter()]
    sums = _Sums(companies, length, bits)
    rows = np.concatenate([sums.masked(number, keys[number]) for number in (0, 1)])  # (2 companies, length)
    shared, most = keys[0].keys() & keys[1].keys(), max((*keys[0].values(), *keys[1].values()))
    # Of two sums and of two companies: a mask that is used twice cancels in the difference.
    pairs = list(combinations(rows, 2))
    each = [
        _spread(a - b, bits, level / len(pairs), "spread of masks' differences / uniform") for a, b in pairs
    ]
    return [
        checks.within(
            "mask keys in two sums", len(shared), 0, len(keys[0]), f"of {len(keys[0])} keys mask another sum too"
        ),
        checks.within(
            "vectors under one mask key", most, 2, len(keys[0]), "vectors, expected a pair's two at most"
        ),
        _spread(rows.flatten(), bits, level, "spread of masked values / uniform"),
        max(each, key=lambda check: (not check.held, abs(check.estimate.value - 1))),
    ]  # fmt: skip


def _spread(values: Masked, bits: int, level: float, name: str) -> Check:
    """Pearson's test of the highest bits of residues (n,)."""
    places = (values & np.uint32(2**bits - 1)) >> np.uint32(bits - _BINS_BITS)
    counts = np.bincount(places, minlength=1 << _BINS_BITS)
    return checks.pearson(counts[None].astype(float), level, name)


class _Sums:
    """A cohort whose companies mask zeros, each by the code that masks its updates."""

    def __init__(self, companies: int, length: int, bits: int) -> None:
        identities = {f"company-{i}": Identity.generate() for i in range(companies)}
        roster = Roster({name: identity.public for name, identity in identities.items()})
        self.members = {name: Member(name, identity, roster) for name, identity in identities.items()}
        self.channels = {name: ChannelKeys.generate() for name in self.members}
        self.length, self.bits = length, bits

    def masked(self, number: int, keys: Counter[bytes]) -> Masked:
        """(companies, length); `keys` counts those of the masks."""
        session = Session(
            run="conformance",
            round=number + 1,
            label="block-0",
            model_digest=bytes(32),
            settings_digest=bytes(32),
            cohort=tuple(self.members),
            threshold=lowest_threshold(len(self.members)),
            length=self.length,
            bits=self.bits,
        )
        public = {
            name: self.channels[name].signed(member, session.run, session.settings_digest)
            for name, member in self.members.items()
        }
        parties = {
            name: CompanySession.start(session, member, self.channels[name], public, len(self.members))
            for name, member in self.members.items()
        }
        adverts = {name: party.advert() for name, party in parties.items()}
        zeros = np.zeros(self.length, dtype=np.uint32)
        original: Any = masks._keystream

        def counted(key: bytes) -> Any:
            keys[key] += 1
            return original(key)

        with replaced(masks, "_keystream", counted):
            sent = [
                party.mask(zeros, {peer: advert.for_recipient(name) for peer, advert in adverts.items()})
                for name, party in parties.items()
            ]
        return np.stack([packing.unpack(each, self.length, self.bits) for each in sent])
