"""Secure aggregation as the tests play it: a cohort with every message and every state passed through bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedblocks.errors import ProtocolError
from fedblocks.privacy.secure_aggregation import (
    Advert,
    Aggregation,
    ChannelKey,
    ChannelKeys,
    CompanySession,
    Confirmation,
    Confirmations,
    Identity,
    Member,
    Roster,
    Session,
    Survivors,
    lowest_threshold,
)

Vector = NDArray[np.uint32]
NAMES = ("ada", "bob", "cyd", "dan", "eve", "flo", "gus")


def a_session(n: int = 4, **changes: Any) -> Session:
    fields: dict[str, Any] = {
        "run": "run-1",
        "round": 3,
        "label": "block-0",
        "model_digest": b"m" * 32,
        "settings_digest": b"s" * 32,
        "cohort": names_of(n),
        "threshold": lowest_threshold(n),
        "length": 50,
    }
    return Session(**(fields | changes))


def names_of(n: int) -> tuple[str, ...]:
    return NAMES[:n] if n <= len(NAMES) else tuple(f"company-{i:03d}" for i in range(n))


@cache
def identity(name: str) -> Identity:
    return Identity.generate()


def a_roster(names: Iterable[str]) -> Roster:
    return Roster({name: identity(name).public for name in names})


def a_member(name: str, roster: Roster) -> Member:
    return Member(name, identity(name), roster)


def signed_key(channel: ChannelKeys, name: str, session: Session, roster: Roster) -> ChannelKey:
    return channel.signed(a_member(name, roster), session.run, session.settings_digest)


class Cohort:
    """All parties of one session, up to and including the adverts; vectors are drawn from a seed."""

    def __init__(
        self, session: Session, seed: int = 0, minimum_cohort: int = 3, roster: Roster | None = None
    ) -> None:
        self.session = session
        self.roster = roster or a_roster(session.cohort)
        self.members = {name: a_member(name, self.roster) for name in session.cohort}
        self.keys = {name: ChannelKeys.generate() for name in session.cohort}
        self.channels = {name: signed_key(key, name, session, self.roster) for name, key in self.keys.items()}
        self.companies = {name: self.start(name, minimum_cohort) for name in session.cohort}
        self.adverts = {name: company.advert() for name, company in self.companies.items()}
        draw = np.random.default_rng(seed)
        self.vectors: dict[str, Vector] = {
            name: draw.integers(0, session.largest, session.length, dtype=np.uint32, endpoint=True)
            for name in session.cohort
        }

    def start(self, name: str, minimum_cohort: int = 3, **changes: Any) -> CompanySession:
        arguments: dict[str, Any] = {
            "session": self.session,
            "member": self.members[name],
            "channel": self.keys[name],
            "channels": self.channels,
            "minimum_cohort": minimum_cohort,
        }
        return CompanySession.start(**(arguments | changes))

    def reloaded(self, name: str) -> CompanySession:
        return self.again(self.companies[name])

    def again(self, company: CompanySession) -> CompanySession:
        return CompanySession.from_bytes(company.to_bytes(), self.members[company.me])

    def adverts_for(self, name: str, among: Iterable[str] | None = None) -> dict[str, Advert]:
        names = self.adverts if among is None else among
        return {peer: self.adverts[peer].for_recipient(name) for peer in names}

    def masked(self, name: str, among: Iterable[str] | None = None) -> CompanySession:
        company = self.reloaded(name)
        company.mask(self.vectors[name], self.adverts_for(name, among))
        return company

    def survivors(self, names: Iterable[str]) -> Survivors:
        return Survivors(session=self.session.digest(), names=tuple(names))

    def confirmed(
        self, name: str, survivors: Iterable[str], among: Iterable[str] | None = None
    ) -> tuple[CompanySession, Confirmation]:
        company = self.masked(name, among)
        return company, company.confirm(self.survivors(survivors))

    def confirmations(
        self, signers: Iterable[str], survivors: Iterable[str], among: Iterable[str] | None = None
    ) -> Confirmations:
        survivors = tuple(survivors)
        return self.confirmations_of({name: self.confirmed(name, survivors, among)[1] for name in signers})

    def confirmations_of(self, signed: dict[str, Confirmation]) -> Confirmations:
        signatures = {name: confirmation.signature for name, confirmation in signed.items()}
        return Confirmations(session=self.session.digest(), signatures=signatures)

    def aggregation(self, among: Iterable[str] | None = None) -> Aggregation:
        """The coordinator's side with all adverts in."""
        aggregation = Aggregation(self.session, self.roster)
        for name in self.session.cohort if among is None else among:
            aggregation.add_advert(name, self.adverts[name])
        return aggregation

    def total(self, survivors: Iterable[str]) -> Vector:
        total = sum(self.vectors[name].astype(object) for name in survivors)
        return np.array(total % (self.session.largest + 1), dtype=np.uint32)


def refused(code: str, call: Callable[..., object], *arguments: Any, **named: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        call(*arguments, **named)
    assert caught.value.code == code, caught.value


def over_the_wire(message: Any) -> Any:
    return type(message).from_bytes(message.to_bytes())


def play(cohort: Cohort, leaves: dict[str, int]) -> tuple[Vector, tuple[str, ...]]:
    """A whole session; a company takes part in as many phases (0 to 4) as `leaves` says."""
    aggregation = Aggregation(over_the_wire(cohort.session), cohort.roster)
    states = {}
    for name in cohort.session.cohort:
        if leaves[name] >= 1:
            aggregation.add_advert(name, over_the_wire(cohort.adverts[name]))
    adverts = aggregation.close_adverts()
    for name in cohort.session.cohort:
        if leaves[name] >= 2:
            company = cohort.reloaded(name)
            for_me = {peer: over_the_wire(advert.for_recipient(name)) for peer, advert in adverts.items()}
            aggregation.add_masked(name, company.mask(cohort.vectors[name], for_me))
            states[name] = company
    survivors = over_the_wire(aggregation.close_masked())
    for name in survivors.names:
        if leaves[name] >= 3:
            company = states[name] = cohort.again(states[name])
            aggregation.add_confirmation(name, over_the_wire(company.confirm(survivors)))
    confirmations = over_the_wire(aggregation.close_confirmations())
    for name in confirmations.signatures:
        if leaves[name] >= 4:
            company = cohort.again(states[name])
            aggregation.add_shares(name, over_the_wire(company.unmask(confirmations)))
            assert not company._shares
    return aggregation.open()
