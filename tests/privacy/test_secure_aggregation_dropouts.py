"""Dropouts: for 3 to 7 companies every set that can be lost in every phase, above that at random.

The tree of all histories: who sent an advert, who of these a vector, who of these a confirmation, who of these
shares.
A set below the threshold ends its branch: the phase cannot be closed, and nothing is opened.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.secagg import Cohort, a_session, over_the_wire, play, refused

from fedblocks.privacy.secure_aggregation import Aggregation, CompanySession, UnmaskShares, lowest_threshold

Names = tuple[str, ...]


def subsets(names: Names) -> Iterator[Names]:
    for size in range(len(names) + 1):
        yield from combinations(names, size)


def fork(aggregation: Aggregation) -> Aggregation:
    """A copy that goes its own way."""
    twin = copy.copy(aggregation)
    for name, value in vars(aggregation).items():
        if isinstance(value, dict | set | np.ndarray):
            setattr(twin, name, value.copy())
    return twin


class History:
    """Every company's messages, each computed once for what it depends on; messages and states pass through bytes."""

    def __init__(self, n: int) -> None:
        self.cohort = Cohort(a_session(n, length=3, bits=22), seed=n)
        self.threshold = self.cohort.session.threshold
        self.opened = self.aborted = 0
        self.masked = lru_cache(None)(self._masked)
        self.confirmed = lru_cache(None)(self._confirmed)

    def _masked(self, name: str, adverts: Names) -> tuple[CompanySession, Any]:
        company = self.cohort.reloaded(name)
        sent = {peer: over_the_wire(a) for peer, a in self.cohort.adverts_for(name, adverts).items()}
        return company, company.mask(self.cohort.vectors[name], sent)

    def _confirmed(self, name: str, adverts: Names, survivors: Names) -> tuple[CompanySession, Any]:
        company = self.cohort.again(self.masked(name, adverts)[0])
        return company, over_the_wire(company.confirm(self.cohort.survivors(survivors)))

    def every_branch(self) -> None:
        start = Aggregation(self.cohort.session, self.cohort.roster)
        for adverts, one in self.branches(
            start, self.cohort.session.cohort, self.add_advert, "close_adverts"
        ):
            for vectors, two in self.branches(
                one, adverts, lambda a, name, u=adverts: a.add_masked(name, self.masked(name, u)[1]), "close_masked"
            ):  # fmt: skip
                self.confirm_and_open(two, adverts, vectors)

    def add_advert(self, aggregation: Aggregation, name: str) -> None:
        aggregation.add_advert(name, over_the_wire(self.cohort.adverts[name]))

    def confirm_and_open(self, aggregation: Aggregation, adverts: Names, vectors: Names) -> None:
        def add(a: Aggregation, name: str) -> None:
            a.add_confirmation(name, self.confirmed(name, adverts, vectors)[1])

        for signers, three in self.branches(aggregation, vectors, add, "close_confirmations"):
            proof = self.cohort.confirmations_of(
                {name: self.confirmed(name, adverts, vectors)[1] for name in signers}
            )
            answers: dict[str, UnmaskShares] = {}
            for name in signers:
                company = self.cohort.again(self.confirmed(name, adverts, vectors)[0])
                answers[name] = over_the_wire(company.unmask(proof))
                refused("wrong_phase", company.unmask, proof)
            for answered in subsets(signers):
                four = fork(three)
                for name in answered:
                    four.add_shares(name, answers[name])
                if len(answered) < self.threshold:
                    refused("too_few", four.open)
                    self.aborted += 1
                    continue
                total, survivors = four.open()
                assert survivors == vectors
                assert np.array_equal(total, self.cohort.total(vectors))
                self.opened += 1

    def branches(
        self, aggregation: Aggregation, among: Names, add: Callable[[Aggregation, str], None], close: str
    ) -> Iterator[tuple[Names, Aggregation]]:
        """Each subset that may go on, with its own copy of the coordinator's side after the phase."""
        for names in subsets(among):
            twin = fork(aggregation)
            for name in names:
                add(twin, name)
            if len(names) < self.threshold:
                refused("too_few", getattr(twin, close))
                refused("wrong_phase", twin.open)
                self.aborted += 1
                continue
            getattr(twin, close)()
            yield names, twin


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7])
def test_every_dropout_in_every_phase_is_survived_down_to_the_threshold(n: int) -> None:
    history = History(n)
    history.every_branch()
    spare = n - history.threshold
    # Whoever is lost is lost in one of four phases: 4^k histories for each set of k.
    assert history.opened == sum(4**k * comb(n, k) for k in range(spare + 1))
    assert history.aborted >= 2**n - 1 - sum(comb(n, k) for k in range(1, spare + 1))


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_below_the_threshold_no_company_lets_a_share_out(phase: int) -> None:
    """The coordinator lies about who is there instead of giving up."""
    cohort = Cohort(a_session(7))
    few = cohort.session.cohort[:4]  # the threshold is 5
    company = cohort.reloaded("ada")
    if phase == 1:
        refused("too_few", company.mask, cohort.vectors["ada"], cohort.adverts_for("ada", few))
    elif phase == 2:
        refused("too_few", cohort.masked("ada").confirm, cohort.survivors(few))
    else:
        everybody = cohort.session.cohort
        confirmed, _ = cohort.confirmed("ada", everybody)
        refused("too_few", confirmed.unmask, cohort.confirmations(few, everybody))


@settings(max_examples=12, deadline=None)
@given(n=st.integers(8, 24), bits=st.integers(1, 32), data=st.data(), seed=st.integers(0))
def test_larger_cohorts_survive_losses_at_random(n: int, bits: int, data: st.DataObject, seed: int) -> None:
    threshold = data.draw(st.integers(lowest_threshold(n), n))
    session = a_session(n, bits=bits, length=data.draw(st.integers(1, 40)), threshold=threshold)
    cohort = Cohort(session, seed)
    names = session.cohort
    lost = data.draw(st.sets(st.sampled_from(names), max_size=n - threshold + 1))
    leaves = {name: data.draw(st.integers(0, 3)) if name in lost else 4 for name in names}
    if n - len(lost) < threshold:
        refused("too_few", play, cohort, leaves)
        return
    total, survivors = play(cohort, leaves)
    assert np.array_equal(total, cohort.total(survivors))
