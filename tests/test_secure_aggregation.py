"""Secure aggregation: sums exact under every dropout, and every rule that a company must insist on."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2

from fedblocks.errors import ProtocolError
from fedblocks.privacy import secure_aggregation
from fedblocks.privacy.secure_aggregation import (
    Advert,
    Aggregation,
    ChannelKeys,
    CompanySession,
    Session,
    Survivors,
    UnmaskShares,
    keys,
    lowest_threshold,
    masks,
    shamir,
    wire,
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
        "cohort": NAMES[:n],
        "threshold": lowest_threshold(n),
        "length": 50,
    }
    return Session(**(fields | changes))


class Cohort:
    """All parties of one session, up to and including the adverts; vectors are drawn from a seed."""

    def __init__(self, session: Session, seed: int = 0, minimum_cohort: int = 3) -> None:
        self.session = session
        self.channels = {name: ChannelKeys.generate() for name in session.cohort}
        self.roster = {name: channel.public for name, channel in self.channels.items()}
        self.companies = {
            name: CompanySession.start(session, name, self.channels[name], self.roster, minimum_cohort)
            for name in session.cohort
        }
        self.adverts = {name: company.advert() for name, company in self.companies.items()}
        draw = np.random.default_rng(seed)
        self.vectors: dict[str, Vector] = {
            name: draw.integers(0, session.largest, session.length, dtype=np.uint32, endpoint=True)
            for name in session.cohort
        }

    def reloaded(self, name: str) -> CompanySession:
        return CompanySession.from_bytes(self.companies[name].to_bytes())

    def adverts_for(self, name: str) -> dict[str, Advert]:
        return {peer: advert.for_recipient(name) for peer, advert in self.adverts.items()}

    def masked(self, name: str) -> CompanySession:
        company = self.reloaded(name)
        company.mask(self.vectors[name], self.adverts_for(name))
        return company

    def total(self, survivors: Iterable[str]) -> Vector:
        total = sum(self.vectors[name].astype(object) for name in survivors)
        return np.array(total % (self.session.largest + 1), dtype=np.uint32)


def refused(code: str, call: Callable[..., object], *arguments: Any, **named: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        call(*arguments, **named)
    assert caught.value.code == code


def over_the_wire(message: Any) -> Any:
    return type(message).from_bytes(message.to_bytes())


def play(cohort: Cohort, leaves: dict[str, int]) -> tuple[Vector, tuple[str, ...]]:
    """A whole session; a company takes part in as many phases (0 to 3) as `leaves` says.

    Every message and every state passes through its bytes.
    """
    aggregation = Aggregation(over_the_wire(cohort.session))
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
            states[name] = company.to_bytes()
    survivors = aggregation.close_masked()
    for name in survivors:
        if leaves[name] >= 3:
            company = CompanySession.from_bytes(states[name])
            aggregation.add_shares(name, over_the_wire(company.unmask(survivors)))
            assert not company._shares
    return aggregation.open()


# Sums


@pytest.mark.parametrize("n", [3, 4, 5])
def test_sum_is_exact_for_every_dropout_in_every_phase_down_to_the_threshold(n: int) -> None:
    cohort = Cohort(a_session(n, length=7), seed=n)
    opened = 0
    for phases in product(range(4), repeat=n):
        leaves = dict(zip(cohort.session.cohort, phases, strict=True))
        if sum(phase == 3 for phase in phases) < cohort.session.threshold:
            refused("too_few", play, cohort, leaves)
            continue
        total, survivors = play(cohort, leaves)
        assert survivors == tuple(name for name in cohort.session.cohort if leaves[name] >= 2)
        assert np.array_equal(total, cohort.total(survivors))
        opened += 1
    spare = n - cohort.session.threshold
    assert opened == sum(3**k * len(list(combinations(range(n), k))) for k in range(spare + 1))


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(3, 7),
    bits=st.integers(1, 32),
    length=st.integers(1, 200),
    data=st.data(),
    seed=st.integers(0),
)
def test_sum_is_exact_for_any_cohort_width_and_length(
    n: int, bits: int, length: int, data: st.DataObject, seed: int
) -> None:
    threshold = data.draw(st.integers(lowest_threshold(n), n))
    cohort = Cohort(a_session(n, bits=bits, length=length, threshold=threshold), seed)
    lost = data.draw(st.sets(st.sampled_from(NAMES[:n]), max_size=n - threshold))
    leaves = {name: data.draw(st.integers(0, 2)) if name in lost else 3 for name in NAMES[:n]}
    total, survivors = play(cohort, leaves)
    assert total.dtype == np.uint32
    assert np.array_equal(total, cohort.total(survivors))


def test_vectors_longer_than_one_chunk_sum_exactly() -> None:
    cohort = Cohort(a_session(4, length=2 * masks.CHUNK_VALUES + 3))
    total, survivors = play(cohort, {"ada": 3, "bob": 1, "cyd": 3, "dan": 3})
    assert np.array_equal(total, cohort.total(survivors))


def test_masks_are_the_documented_keystreams() -> None:
    """An independent AES-256-CTR in one piece, added in Python's integers."""
    from Crypto.Cipher import AES

    length = masks.CHUNK_VALUES + 5
    one, two = b"1" * 32, b"2" * 32
    vector = np.arange(length, dtype=np.uint32)
    got = masks.apply_masks(vector, [one], [two], 2**32 - 1)
    plus, minus = (
        np.frombuffer(AES.new(key, AES.MODE_CTR, nonce=b"").encrypt(bytes(4 * length)), "<u4").astype(
            np.int64
        )
        for key in (one, two)
    )
    assert np.array_equal(got, (vector + plus - minus) % 2**32)
    assert np.array_equal(vector, np.arange(length))


@pytest.mark.parametrize("bits", [32, 24])
def test_a_masked_vector_looks_uniform_and_unlike_its_input(bits: int) -> None:
    cohort = Cohort(a_session(3, bits=bits, length=100_000))
    vector = np.zeros(cohort.session.length, dtype=np.uint32)
    masked = cohort.companies["bob"].mask(vector, cohort.adverts_for("bob"))
    assert not vector.any()
    octets = masked.view(np.uint8).reshape(-1, 4)[:, : bits // 8]  # (length, bits / 8), little-endian
    for column in octets.T:
        counts = np.bincount(column, minlength=256)
        expected = len(column) / 256
        # One chance in 10^9 that uniform bytes fail.
        assert np.sum((counts - expected) ** 2 / expected) < chi2.isf(1e-9, 255)
    assert int(masked.max()) <= cohort.session.largest


def test_without_the_self_masks_the_pairwise_masks_cancel_in_the_sum_only() -> None:
    cohort = Cohort(a_session(3))
    private = {name: company._private for name, company in cohort.companies.items()}
    digest = cohort.session.digest()
    residue = np.zeros(cohort.session.length, dtype=np.uint32)
    for name in cohort.session.cohort:
        add: list[bytes] = []
        subtract: list[bytes] = []
        for peer in set(cohort.session.cohort) - {name}:
            ends = (name, cohort.adverts[name].public), (peer, cohort.adverts[peer].public)
            key, adds = masks.pair_mask_key(private[name], digest, *ends)
            (add if adds else subtract).append(key)
        part = masks.apply_masks(np.zeros_like(residue), add, subtract, cohort.session.largest)
        assert part.any()
        residue += part
    assert not residue.any()


# Secret sharing


@given(secret=st.binary(min_size=32, max_size=32), n=st.integers(1, 6), data=st.data())
def test_every_set_of_threshold_shares_restores_the_secret(
    secret: bytes, n: int, data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(1, n))
    shares = dict(enumerate(shamir.split(secret, threshold, n), start=1))
    for chosen in combinations(shares, threshold):
        assert shamir.combine({x: shares[x] for x in chosen}) == secret


@given(secret=st.binary(min_size=32, max_size=32), other=st.binary(min_size=32, max_size=32), data=st.data())
def test_one_share_too_few_fits_every_secret(secret: bytes, other: bytes, data: st.DataObject) -> None:
    """For any other secret there is a last share that makes the same known shares restore it."""
    threshold = data.draw(st.integers(2, 5))
    known = dict(enumerate(shamir.split(secret, threshold, 5), start=1))
    known = {x: known[x] for x in data.draw(st.permutations(range(1, 6)))[: threshold - 1]}
    x = next(x for x in range(1, 6) if x not in known)
    # Interpolate through the known shares and (0, other), read off at x: an independent Lagrange.
    points = {at: int.from_bytes(share, "big") for at, share in known.items()} | {
        0: int.from_bytes(other, "big")
    }
    value = 0
    for at, height in points.items():
        for away in points.keys() - {at}:
            height = height * (x - away) * pow(at - away, -1, shamir.PRIME) % shamir.PRIME
        value += height
    forged = (value % shamir.PRIME).to_bytes(shamir.SHARE_SIZE, "big")
    assert shamir.combine(known | {x: forged}) == other


def test_shares_of_one_secret_differ_every_time_and_spread_over_the_field() -> None:
    first = [shamir.split(bytes(32), 2, 2)[0] for _ in range(400)]
    assert len(set(first)) == 400
    upper = sum(int.from_bytes(share, "big") > shamir.PRIME // 2 for share in first)
    assert 120 < upper < 280


def test_the_field_is_that_of_the_smallest_prime_above_256_bits() -> None:
    # Fermat's test in bases 3 and 7; base 2 would be fooled by 2^256 + 1, a Fermat number.
    assert pow(3, shamir.PRIME - 1, shamir.PRIME) == pow(7, shamir.PRIME - 1, shamir.PRIME) == 1
    assert all(pow(3, m - 1, m) != 1 for m in range(2**256 + 1, shamir.PRIME, 2))


# What a company insists on


@pytest.mark.parametrize(("n", "threshold"), [(3, 2), (4, 2), (5, 3), (6, 4), (7, 4)])
def test_a_threshold_that_two_thirds_can_reach_is_refused(n: int, threshold: int) -> None:
    session = a_session(n, threshold=threshold)
    channels = {name: ChannelKeys.generate() for name in session.cohort}
    roster = {name: channel.public for name, channel in channels.items()}
    refused("low_threshold", CompanySession.start, session, "ada", channels["ada"], roster, 3)
    assert 3 * lowest_threshold(n) > 2 * n >= 3 * (lowest_threshold(n) - 1)


def test_a_company_refuses_a_session_below_its_floors_or_without_its_keys() -> None:
    channel, peer = ChannelKeys.generate(), ChannelKeys.generate().public
    roster = {"ada": channel.public, "bob": peer, "cyd": peer, "dan": peer}
    start = CompanySession.start
    refused("small_cohort", start, a_session(4), "ada", channel, roster, 5)
    refused("small_cohort", start, a_session(2), "ada", channel, roster, 0)
    refused("not_in_cohort", start, a_session(4), "zoe", channel, roster, 3)
    refused("no_channel", start, a_session(5), "ada", channel, roster, 3)
    refused("bad_key", start, a_session(4), "ada", channel, roster | {"ada": peer}, 3)
    refused("bad_key", start, a_session(4), "ada", channel, roster | {"bob": bytes(32)}, 3)
    refused("bad_key", start, a_session(4), "ada", channel, roster | {"bob": b"short"}, 3)
    # None of these refusals has used the session up.
    start(a_session(4), "ada", channel, roster, 4)


def test_a_session_is_begun_once_even_after_a_restart() -> None:
    cohort = Cohort(a_session())
    for channel in (cohort.channels["ada"], over_the_wire(cohort.channels["ada"])):
        refused("replay", CompanySession.start, cohort.session, "ada", channel, cohort.roster, 3)
        CompanySession.start(replace(cohort.session, label="block-1"), "ada", channel, cohort.roster, 3)


def test_a_vector_is_masked_once_and_shares_are_answered_once() -> None:
    cohort = Cohort(a_session())
    company = cohort.companies["ada"]
    refused("wrong_phase", company.unmask, NAMES[:4])
    assert company.advert() == company.advert()
    company.mask(cohort.vectors["ada"], cohort.adverts_for("ada"))
    refused("wrong_phase", company.advert)
    refuses(company, cohort.vectors["ada"], "wrong_phase", cohort.adverts_for("ada"))
    company.unmask(NAMES[:4])
    for survivors in (NAMES[:4], NAMES[:3]):
        refused("wrong_phase", company.unmask, survivors)
        refused("wrong_phase", over_the_wire(company).unmask, survivors)


def test_shares_for_seed_and_key_of_one_company_never_leave_together() -> None:
    cohort = Cohort(a_session(5))
    for size in (4, 5):
        for others in combinations(NAMES[1:5], size - 1):
            survivors = {"ada", *others}
            answer = cohort.masked("ada").unmask(survivors)
            assert answer.seeds.keys() == survivors
            assert answer.keys.keys() == set(NAMES[:5]) - survivors
    share = b"0" * shamir.SHARE_SIZE
    both = {"ada": share}
    refused("bad_survivors", UnmaskShares, session=b"0" * 32, seeds=both, keys=both)


def test_two_stories_about_one_company_never_yield_both_of_its_secrets() -> None:
    """A coordinator alone shows each company the survivor set that suits it; no split reaches t twice."""
    cohort = Cohort(a_session(5))
    everybody, without = NAMES[:5], tuple(name for name in NAMES[:5] if name != "eve")
    for told_dead in product([False, True], repeat=4):
        seeds = keys_ = 0
        for name, dead in zip(without, told_dead, strict=True):
            answer = cohort.masked(name).unmask(without if dead else everybody)
            seeds += "eve" in answer.seeds
            keys_ += "eve" in answer.keys
        seeds += 1  # eve herself, who was told that she survives
        assert min(seeds, keys_) < cohort.session.threshold


def test_survivor_sets_that_a_company_cannot_stand_by_are_refused() -> None:
    cohort = Cohort(a_session(6), minimum_cohort=6)
    company = cohort.masked("ada")
    refused("bad_survivors", company.unmask, (*NAMES[:6], "zoe"))
    refused("bad_survivors", company.unmask, NAMES[1:6])
    refused("bad_survivors", company.unmask, [*NAMES[:5], "ada"])
    refused("small_cohort", company.unmask, NAMES[:5])
    refused("too_few", Cohort(a_session(6)).masked("ada").unmask, NAMES[:4])
    assert company.unmask(NAMES[:6]).seeds.keys() == set(NAMES[:6])


def test_a_company_that_never_sent_an_advert_cannot_be_a_survivor() -> None:
    cohort = Cohort(a_session(5))
    company = cohort.companies["ada"]
    del cohort.adverts["eve"]
    company.mask(cohort.vectors["ada"], cohort.adverts_for("ada"))
    refused("bad_survivors", company.unmask, NAMES[:5])


def refuses(company: CompanySession, vector: Vector, code: str, adverts: dict[str, Advert]) -> None:
    """Both when masking and when checked before the training."""
    refused(code, company.check_adverts, adverts)
    refused(code, company.mask, vector, adverts)


def test_adverts_that_are_few_foreign_or_replaced_are_refused() -> None:
    cohort = Cohort(a_session(5), minimum_cohort=5)
    vector, adverts = cohort.vectors["ada"], cohort.adverts_for("ada")
    company = cohort.companies["ada"]
    bob = adverts["bob"]

    def without(name: str) -> dict[str, Advert]:
        return {peer: advert for peer, advert in adverts.items() if peer != name}

    refuses(company, vector, "small_cohort", without("eve"))
    refuses(company, vector, "not_in_cohort", without("ada"))
    refuses(company, vector, "not_in_cohort", adverts | {"zoe": bob})
    refuses(company, vector, "wrong_session", adverts | {"bob": replace(bob, session=b"0" * 32)})
    refuses(company, vector, "bad_key", adverts | {"ada": bob})
    refuses(company, vector, "bad_share", adverts | {"cyd": bob})
    refuses(company, vector, "bad_share", adverts | {"bob": bob.for_recipient("cyd")})
    few = Cohort(a_session(5)).companies["ada"]
    refuses(few, vector, "too_few", {name: few.advert() for name in NAMES[:3]})
    # A refusal changes nothing: the session goes on with proper adverts.
    company.check_adverts(adverts)
    company.check_adverts(adverts)
    company.mask(vector, adverts)


def test_adverts_that_were_tampered_with_are_refused() -> None:
    cohort = Cohort(a_session())
    vector, adverts = cohort.vectors["ada"], cohort.adverts_for("ada")
    bob, company = adverts["bob"], cohort.companies["ada"]
    sealed = bob.shares["ada"]
    for at in (0, keys.NONCE_SIZE, len(sealed) - 1):
        bent = bytes([*sealed[:at], sealed[at] ^ 1, *sealed[at + 1 :]])
        refuses(company, vector, "bad_share", adverts | {"bob": replace(bob, shares={"ada": bent})})
    # Another mask key or commitment under genuine shares.
    stranger = keys.public_key(keys.new_private_key())
    refuses(company, vector, "bad_share", adverts | {"bob": replace(bob, public=stranger)})
    refuses(company, vector, "bad_share", adverts | {"bob": replace(bob, commitment=stranger)})
    # Genuine shares that were sealed for somebody else, or in another session.
    for_cyd = {"ada": cohort.adverts["bob"].shares["cyd"]}
    refuses(company, vector, "bad_share", adverts | {"bob": replace(bob, shares=for_cyd)})
    later = replace(cohort.session, round=4)
    other = CompanySession.start(later, "bob", cohort.channels["bob"], cohort.roster, 3).advert()
    replayed = replace(other.for_recipient("ada"), session=cohort.session.digest())
    refuses(company, vector, "bad_share", adverts | {"bob": replayed})


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(49, dtype=np.uint32),
        np.zeros((50, 1), dtype=np.uint32),
        np.zeros(50, dtype=np.int32),
        np.zeros(50, dtype=np.uint64),
        np.zeros(50, dtype=np.float64),
        np.full(50, 2**16, dtype=np.uint32),
        [0] * 50,
    ],
)
def test_vectors_of_the_wrong_kind_are_refused_on_both_sides(vector: Any) -> None:
    cohort = Cohort(a_session(bits=16))
    refused("bad_vector", cohort.companies["ada"].mask, vector, cohort.adverts_for("ada"))
    aggregation = Aggregation(cohort.session)
    for name, advert in cohort.adverts.items():
        aggregation.add_advert(name, advert)
    aggregation.close_adverts()
    refused("bad_vector", aggregation.add_masked, "ada", vector)


# What the coordinator's side insists on


def test_the_aggregation_refuses_messages_that_do_not_fit() -> None:
    cohort = Cohort(a_session())
    ada, aggregation = cohort.adverts["ada"], Aggregation(cohort.session)
    refused("not_in_cohort", aggregation.add_advert, "zoe", ada)
    refused("wrong_session", aggregation.add_advert, "ada", replace(ada, session=b"0" * 32))
    refused("bad_key", aggregation.add_advert, "ada", replace(ada, public=bytes(32)))
    refused("bad_share", aggregation.add_advert, "ada", ada.for_recipient("bob"))
    refused("bad_share", aggregation.add_advert, "ada", replace(ada, shares=dict.fromkeys(ada.shares, b"")))
    refused("malformed", aggregation.add_advert, "ada", replace(ada, commitment=b""))
    for name in ("ada", "bob", "cyd"):
        refused("too_few", aggregation.close_adverts)
        aggregation.add_advert(name, cohort.adverts[name])
    refused("duplicate", aggregation.add_advert, "ada", ada)
    refused("wrong_phase", aggregation.add_masked, "ada", cohort.vectors["ada"])
    aggregation.close_adverts()
    refused("wrong_phase", aggregation.add_advert, "dan", cohort.adverts["dan"])
    refused("not_in_cohort", aggregation.add_masked, "dan", cohort.vectors["dan"])
    del cohort.adverts["dan"]
    for name in ("ada", "bob", "cyd"):
        refused("too_few", aggregation.close_masked)
        masked = cohort.companies[name].mask(cohort.vectors[name], cohort.adverts_for(name))
        aggregation.add_masked(name, masked)
    refused("duplicate", aggregation.add_masked, "ada", cohort.vectors["ada"])
    refused("wrong_phase", aggregation.open)
    survivors = aggregation.close_masked()
    answers = {name: cohort.companies[name].unmask(survivors) for name in survivors}
    first = answers["ada"]
    refused("not_in_cohort", aggregation.add_shares, "dan", first)
    refused("wrong_session", aggregation.add_shares, "ada", replace(first, session=b"0" * 32))
    fewer = {name: share for name, share in first.seeds.items() if name != "bob"}
    refused("bad_survivors", aggregation.add_shares, "ada", replace(first, seeds=fewer))
    too_large = first.seeds | {"bob": b"\xff" * shamir.SHARE_SIZE}  # type: ignore[operator]
    refused("bad_share", aggregation.add_shares, "ada", replace(first, seeds=too_large))
    for name, answer in answers.items():
        refused("too_few", aggregation.open)
        aggregation.add_shares(name, answer)
    refused("duplicate", aggregation.add_shares, "ada", first)
    assert np.array_equal(aggregation.open()[0], cohort.total(survivors))
    refused("wrong_phase", aggregation.open)


@pytest.mark.parametrize("kind", ["seeds", "keys"])
def test_a_false_share_is_noticed_and_opens_nothing(kind: str) -> None:
    cohort = Cohort(a_session())
    aggregation = Aggregation(cohort.session)
    for name, advert in cohort.adverts.items():
        aggregation.add_advert(name, advert)
    aggregation.close_adverts()
    for name in NAMES[:3]:
        masked = cohort.companies[name].mask(cohort.vectors[name], cohort.adverts_for(name))
        aggregation.add_masked(name, masked)
    for name in aggregation.close_masked():
        answer = cohort.companies[name].unmask(NAMES[:3])
        if name == "bob":
            table = dict(getattr(answer, kind))
            victim = min(table)
            table[victim] = (int.from_bytes(table[victim], "big") ^ 1).to_bytes(shamir.SHARE_SIZE, "big")
            answer = replace(answer, seeds=table) if kind == "seeds" else replace(answer, keys=table)
        aggregation.add_shares(name, answer)
    refused("bad_share", aggregation.open)


# Encodings


@pytest.mark.parametrize(
    "changes",
    [
        {"run": ""},
        {"run": "x" * 129},
        {"label": "\ud800"},
        {"round": -1},
        {"round": 1.0},
        {"model_digest": b"short"},
        {"settings_digest": "s" * 32},
        {"cohort": ("bob", "ada", "cyd", "dan")},
        {"cohort": ("ada", "ada", "cyd", "dan")},
        {"cohort": ["ada", "bob", "cyd", "dan"]},
        {"cohort": ("ada",)},
        {"cohort": ("ada", "bob", "")},
        {"threshold": 5},
        {"threshold": 1},
        {"length": 0},
        {"length": 2**31},
        {"bits": 33},
        {"bits": 0},
    ],
)
def test_impossible_sessions_are_refused(changes: dict[str, Any]) -> None:
    refused("bad_session", a_session, **changes)


def test_every_field_of_a_session_changes_its_digest() -> None:
    changes: list[dict[str, Any]] = [{"run": "run-2"}, {"round": 4}, {"label": "block-1"}, {"threshold": 4}]
    changes += [{"model_digest": b"n" * 32}, {"settings_digest": b"n" * 32}, {"length": 51}, {"bits": 31}]
    changes += [{"cohort": ("ada", "bob", "cyd", "dam")}, {"run": "run-1b", "label": "lock-0"}]
    digests = {a_session(**change).digest() for change in [{}, *changes]}
    assert len(digests) == len(changes) + 1


def messages() -> list[Any]:
    cohort = Cohort(a_session(4, run="zürich"))
    masked = cohort.masked("bob")
    state = over_the_wire(masked)
    answer = masked.unmask(NAMES[:3])
    survivors = Survivors(session=cohort.session.digest(), names=NAMES[:3], signature=b"x" * 64)
    signed = replace(cohort.adverts["ada"], signature=b"x" * 64)
    whole = [cohort.session, cohort.adverts["ada"], signed, cohort.adverts["ada"].for_recipient("bob")]
    return [*whole, survivors, answer, cohort.channels["ada"], cohort.companies["ada"], state, masked]


MESSAGES = messages()
VALID = [message.to_bytes() for message in MESSAGES]
KINDS = sorted({type(message) for message in MESSAGES}, key=str)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_bytes_and_back(message: Any) -> None:
    again = over_the_wire(message)
    assert again.to_bytes() == message.to_bytes()
    if isinstance(message, Session | Advert | Survivors | UnmaskShares):
        assert again == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_truncated_extended_and_foreign_bytes_are_refused(message: Any) -> None:
    data = message.to_bytes()
    for size in range(len(data)):
        with pytest.raises(ProtocolError):
            type(message).from_bytes(data[:size])
    refused("malformed", type(message).from_bytes, data + b"\0")
    for kind in KINDS:
        if kind is not type(message):
            refused("malformed", kind.from_bytes, data)


def decode_or_refuse(kind: Any, data: bytes) -> None:
    """What was accepted has one encoding only, the one it came in."""
    try:
        message = kind.from_bytes(data)
    except ProtocolError:
        return
    assert message.to_bytes() == data


@settings(max_examples=150)
@given(kind=st.sampled_from(KINDS), head=st.sampled_from(VALID), keep=st.integers(0, 30), junk=st.binary())
def test_junk_raises_nothing_but_a_protocol_error(kind: Any, head: bytes, keep: int, junk: bytes) -> None:
    decode_or_refuse(kind, junk)
    decode_or_refuse(kind, head[:keep] + junk)


@settings(max_examples=300)
@given(message=st.sampled_from(MESSAGES), data=st.data())
def test_altered_bytes_raise_nothing_but_a_protocol_error(message: Any, data: st.DataObject) -> None:
    altered = bytearray(message.to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        altered[data.draw(st.integers(0, len(altered) - 1))] = data.draw(st.integers(0, 255))
    decode_or_refuse(type(message), bytes(altered))


COHORT = Cohort(a_session())


@settings(max_examples=150, deadline=None)
@given(at=st.integers(6, 231), bit=st.integers(0, 7))
def test_an_advert_with_any_bit_flipped_is_refused_by_its_recipient(at: int, bit: int) -> None:
    """Up to the signature, which nothing reads yet, every bit of an advert counts."""
    bob = bytearray(COHORT.adverts["bob"].for_recipient("ada").to_bytes())
    at = min(at, len(bob) - 5)
    bob[at] ^= 1 << bit

    def receive() -> None:
        adverts = COHORT.adverts_for("ada") | {"bob": Advert.from_bytes(bytes(bob))}
        COHORT.reloaded("ada").mask(COHORT.vectors["ada"], adverts)

    with pytest.raises(ProtocolError):
        receive()


def test_states_that_contradict_themselves_are_refused() -> None:
    cohort = Cohort(a_session())
    for name, value in (("_shares", {}), ("_receive", {}), ("_floor", 2), ("me", "zoe")):
        company = cohort.reloaded("ada")
        setattr(company, name, value)
        refused("malformed", CompanySession.from_bytes, company.to_bytes())


def test_names_out_of_order_or_repeated_are_refused() -> None:
    """Otherwise one content would have several encodings, and several digests."""
    digest = a_session().digest()
    share = b"0" * shamir.SHARE_SIZE

    def table(*order: str) -> bytes:
        return wire.u32(len(order)) + b"".join(wire.text(name) + wire.blob(share) for name in order)

    for order in (("bob", "ada"), ("ada", "ada")):
        names = Survivors(session=digest, names=order).to_bytes()
        refused("malformed", Survivors.from_bytes, names)
        head = wire.header(wire.UNMASK_SHARES) + wire.blob(digest)
        refused("malformed", UnmaskShares.from_bytes, head + table(*order) + table())
    channel = ChannelKeys.generate().to_bytes()[:-4]
    refused("malformed", ChannelKeys.from_bytes, channel + wire.blob(b"2" * 8 + b"1" * 8))
    refused("malformed", ChannelKeys.from_bytes, channel + wire.blob(b"1" * 7))


# Secrets


def test_keys_of_different_purposes_parties_and_sessions_are_unrelated() -> None:
    """Above all: what an advert publishes about the seed is not the key of the self mask."""
    ada, bob = ChannelKeys.generate(), ChannelKeys.generate()
    private, seed = keys.new_private_key(), b"s" * 32
    own, peer = ("ada", keys.public_key(private)), bob.public
    found: list[bytes] = []
    for digest in (a_session().digest(), a_session(round=4).digest()):
        for name in ("ada", "bob"):
            found += [masks.self_mask_key(seed, digest, name), masks.seed_commitment(seed, digest, name)]
        for name in ("bob", "cyd"):
            found.append(masks.pair_mask_key(private, digest, own, (name, peer))[0])
            found += ada.share_keys(digest, "ada", name, peer)
        there, back = bob.share_keys(digest, "bob", "ada", ada.public)
        assert (back, there) == ada.share_keys(digest, "ada", "bob", bob.public)
    assert len(set(found)) == len(found)


def test_no_repr_shows_a_secret() -> None:
    cohort = Cohort(a_session())
    company = cohort.companies["ada"]
    hidden = [company._private, company._seed, *company._receive.values(), *company._shares.values()]
    hidden += [channel._private for channel in cohort.channels.values()]
    shown = [repr(company), repr(cohort.channels["ada"]), repr(Aggregation(cohort.session))]
    masked = cohort.masked("ada")
    hidden += list(masked._shares.values())
    answer = masked.unmask(NAMES[:3])
    hidden += [*answer.seeds.values(), *answer.keys.values()]
    shown += [repr(masked), repr(answer), repr(cohort.adverts["ada"]), str(answer), f"{company}"]
    for secret in hidden:
        for text in shown:
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text


def test_secrets_are_let_go_as_soon_as_they_have_served() -> None:
    cohort = Cohort(a_session())
    company = cohort.companies["ada"]
    own, peers = [company._private, company._seed], list(company._receive.values())
    company.mask(cohort.vectors["ada"], cohort.adverts_for("ada"))
    state = company.to_bytes()
    assert not any(secret in state for secret in [*own, *peers])
    shares = list(company._shares.values())
    assert len(shares) == 4
    company.unmask(NAMES[:4])
    assert not any(share[:33] in company.to_bytes() or share[33:] in company.to_bytes() for share in shares)


def test_the_channel_key_is_not_in_the_state_of_a_session() -> None:
    cohort = Cohort(a_session())
    assert cohort.channels["ada"]._private not in cohort.companies["ada"].to_bytes()


def test_every_code_is_documented() -> None:
    folder = Path(str(secure_aggregation.__file__)).parent
    source = "".join(path.read_text() for path in folder.glob("*.py"))
    used = set(re.findall(r'ProtocolError\(\s*"(\w+)"', source))
    documented = set(re.findall(r"^    (\w+)  +\S", str(secure_aggregation.__doc__), re.MULTILINE))
    assert used == documented
