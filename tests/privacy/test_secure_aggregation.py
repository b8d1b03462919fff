"""Secure aggregation: sums exact under every dropout, and every rule that a company must insist on."""

import re
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from support.secagg import (
    NAMES,
    Cohort,
    Vector,
    a_member,
    a_roster,
    a_session,
    identity,
    over_the_wire,
    play,
    refused,
)

from fedblocks.errors import ProtocolError
from fedblocks.privacy import secure_aggregation
from fedblocks.privacy.secure_aggregation import (
    Advert,
    Aggregation,
    ChannelKeys,
    CompanySession,
    Confirmations,
    Session,
    Survivors,
    UnmaskShares,
    keys,
    lowest_threshold,
    masks,
    packing,
    shamir,
    wire,
)

# Sums


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
    leaves = {name: data.draw(st.integers(0, 3)) if name in lost else 4 for name in NAMES[:n]}
    total, survivors = play(cohort, leaves)
    assert total.dtype == np.uint32
    assert np.array_equal(total, cohort.total(survivors))


def test_vectors_longer_than_one_chunk_sum_exactly() -> None:
    cohort = Cohort(a_session(4, length=2 * packing.BLOCK + 3, bits=22))
    total, survivors = play(cohort, {"ada": 4, "bob": 1, "cyd": 4, "dan": 4})
    assert np.array_equal(total, cohort.total(survivors))


def test_masks_are_the_documented_keystreams() -> None:
    """An independent AES-256-CTR in one piece, added in Python's integers."""
    from Crypto.Cipher import AES

    length = packing.BLOCK + 5
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
    packed = cohort.companies["bob"].mask(vector, cohort.adverts_for("bob"))
    masked = packing.unpack(packed, cohort.session.length, bits)
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
            key, adds = masks.pair_mask_key(keys.loaded(private[name]), digest, *ends)
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
    cohort = Cohort(a_session(n))
    refused("low_threshold", cohort.start, "ada", session=a_session(n, threshold=threshold))
    assert 3 * lowest_threshold(n) > 2 * n >= 3 * (lowest_threshold(n) - 1)


@pytest.mark.parametrize("n", range(3, 12))
def test_two_sets_of_signers_have_more_in_common_than_collude(n: int) -> None:
    """Every pair of sets, not a formula: would catch a threshold that lets colluders play two honest halves."""
    for colluders in range(n):
        t = lowest_threshold(n, colluders)
        least = [
            t
            for t in range(1, n + 1)
            if min(len(set(a) & set(range(t))) for a in combinations(range(n), t)) > colluders
        ]
        assert t == max(lowest_threshold(n), least[0])
    assert lowest_threshold(n, n) > n


def test_a_threshold_that_the_tolerated_colluders_can_get_round_is_refused() -> None:
    """Ten companies, four against one: seven signers leave two sets with nothing in common but colluders."""
    session = a_session(10, threshold=7)
    cohort, name = Cohort(session), session.cohort[0]
    refused("low_threshold", cohort.start, name, session=replace(session, round=9), colluders=4)
    cohort.start(name, session=replace(session, round=9, threshold=8), colluders=4)


def test_a_company_refuses_a_session_below_its_floors_or_without_its_keys() -> None:
    cohort = Cohort(a_session(4), roster=a_roster([*NAMES, "zoe"]))
    channels, later = cohort.channels, replace(cohort.session, round=4)
    zoe = a_member("zoe", cohort.roster)

    def refuses(code: str, minimum: int = 3, session: Session = later, **changes: Any) -> None:
        refused(code, cohort.start, "ada", minimum, session=session, **changes)

    refuses("small_cohort", minimum=5)
    refuses("small_cohort", minimum=0, session=a_session(2))
    refuses("not_in_cohort", member=zoe)
    refuses("no_channel", session=a_session(5))
    refuses("bad_key", channel=ChannelKeys.generate())
    # Signed by their owner, yet no keys that anything can be sealed with.
    for useless in (bytes(32), b"short"):
        signature = cohort.members["bob"].sign("channel key", b"run-1", b"s" * 32, useless)
        refuses("bad_key", channels=channels | {"bob": keys.ChannelKey(useless, signature)})
    # None of these refusals has used the session up.
    cohort.start("ada", 4, session=later)


def test_a_session_is_begun_once_even_after_a_restart() -> None:
    cohort = Cohort(a_session())
    for channel in (cohort.keys["ada"], over_the_wire(cohort.keys["ada"])):
        refused("replay", cohort.start, "ada", channel=channel)
        cohort.start("ada", session=replace(cohort.session, label="block-1"), channel=channel)


def test_a_vector_is_masked_once_one_set_is_confirmed_and_shares_are_answered_once() -> None:
    cohort = Cohort(a_session())
    company, everybody = cohort.companies["ada"], cohort.survivors(NAMES[:4])
    proof = cohort.confirmations(NAMES[:4], NAMES[:4])
    refused("wrong_phase", company.confirm, everybody)
    refused("wrong_phase", company.unmask, proof)
    assert company.advert() == company.advert()
    company.mask(cohort.vectors["ada"], cohort.adverts_for("ada"))
    refused("wrong_phase", company.advert)
    refuses(company, cohort.vectors["ada"], "wrong_phase", cohort.adverts_for("ada"))
    refused("wrong_phase", company.unmask, proof)
    first = company.confirm(everybody)
    assert cohort.again(company).confirm(everybody) == first
    refused("second_set", company.confirm, cohort.survivors(NAMES[:3]))
    refused("second_set", cohort.again(company).confirm, cohort.survivors(NAMES[:3]))
    company.unmask(proof)
    for one in (company, cohort.again(company)):
        refused("wrong_phase", one.unmask, proof)
        refused("wrong_phase", one.confirm, everybody)


def test_shares_for_seed_and_key_of_one_company_never_leave_together() -> None:
    cohort = Cohort(a_session(5))
    for size in (4, 5):
        for others in combinations(NAMES[1:5], size - 1):
            survivors = ("ada", *others)
            company, _ = cohort.confirmed("ada", survivors)
            answer = company.unmask(cohort.confirmations(survivors, survivors))
            assert answer.seeds.keys() == set(survivors)
            assert answer.keys.keys() == set(NAMES[:5]) - set(survivors)
    share = b"0" * shamir.SHARE_SIZE
    both = {"ada": share}
    refused("bad_survivors", UnmaskShares, session=b"0" * 32, seeds=both, keys=both)


def test_two_stories_about_one_company_open_nothing() -> None:
    """A coordinator shows each company the survivor set that suits it. With t > 2n/3 at most one of two sets
    finds t signatures, and no split reaches t shares of the victim's seed and of its key."""
    cohort = Cohort(a_session(5))
    everybody, without = NAMES[:5], tuple(name for name in NAMES[:5] if name != "eve")
    for told_dead in product([False, True], repeat=4):
        shown = dict(zip(without, told_dead, strict=True)) | {"eve": False}
        held = {name: cohort.confirmed(name, without if dead else everybody) for name, dead in shown.items()}
        seeds = keys_ = 0
        for name, (company, _) in held.items():
            same = {peer: held[peer][1].signature for peer in held if shown[peer] == shown[name]}
            proof = Confirmations(session=cohort.session.digest(), signatures=same)
            if len(same) < cohort.session.threshold:
                refused("too_few", company.unmask, proof)
                continue
            answer = company.unmask(proof)
            seeds += "eve" in answer.seeds
            keys_ += "eve" in answer.keys
        assert min(seeds, keys_) < cohort.session.threshold


def test_survivor_sets_that_a_company_cannot_stand_by_are_refused() -> None:
    cohort = Cohort(a_session(6), minimum_cohort=6)
    company = cohort.masked("ada")

    def refuses(code: str, names: tuple[str, ...]) -> None:
        refused(code, company.confirm, cohort.survivors(names))

    refuses("bad_survivors", (*NAMES[:6], "zoe"))
    refuses("bad_survivors", NAMES[1:6])
    refuses("bad_survivors", ("ada", *NAMES[:6]))
    refuses("bad_survivors", NAMES[5::-1])
    refuses("small_cohort", NAMES[:5])
    fewer = Cohort(a_session(6))
    refused("too_few", fewer.masked("ada").confirm, fewer.survivors(NAMES[:4]))
    refused("wrong_session", company.confirm, Survivors(session=b"0" * 32, names=NAMES[:6]))
    assert company.confirm(cohort.survivors(NAMES[:6]))


def test_shares_leave_only_for_enough_genuine_signatures_over_the_same_set_and_adverts() -> None:
    cohort = Cohort(a_session(5))
    company, _ = cohort.confirmed("ada", NAMES[:5])
    proof = cohort.confirmations(NAMES[:5], NAMES[:5])
    signatures = proof.signatures

    def refuses(code: str, **changes: Any) -> None:
        refused(code, company.unmask, replace(proof, **changes))

    refuses("wrong_session", session=b"0" * 32)
    refuses("too_few", signatures={name: signatures[name] for name in NAMES[:3]})
    refuses("bad_survivors", signatures=signatures | {"zoe": signatures["bob"]})
    refuses("bad_signature", signatures=signatures | {"bob": signatures["cyd"]})
    refuses("bad_signature", signatures=signatures | {"bob": bytes(64)})
    other_set = cohort.confirmations(["bob"], NAMES[:4]).signatures
    refuses("bad_signature", signatures=signatures | other_set)
    fewer_adverts = cohort.confirmations(["bob"], NAMES[:4], among=NAMES[:4]).signatures
    refuses("bad_signature", signatures=signatures | fewer_adverts)
    assert company.unmask(replace(proof, signatures={name: signatures[name] for name in NAMES[1:5]}))


def test_a_company_that_never_sent_an_advert_cannot_be_a_survivor() -> None:
    cohort = Cohort(a_session(5))
    company = cohort.masked("ada", among=NAMES[:4])
    refused("bad_survivors", company.confirm, cohort.survivors(NAMES[:5]))


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
    refuses(company, vector, "bad_signature", adverts | {"cyd": bob})
    refuses(company, vector, "bad_signature", adverts | {"bob": replace(bob, signature=bytes(64))})
    refuses(company, vector, "bad_share", adverts | {"bob": bob.for_recipient("cyd")})
    fewer = Cohort(a_session(5))
    few = fewer.companies["ada"]
    refuses(few, vector, "too_few", fewer.adverts_for("ada", NAMES[:3]))
    # A refusal changes nothing: the session goes on with proper adverts.
    company.check_adverts(adverts)
    company.check_adverts(adverts)
    # What was checked once is not taken for what comes later.
    refuses(company, vector, "bad_share", adverts | {"bob": bob.for_recipient("cyd")})
    company.mask(vector, adverts)


def test_adverts_that_were_tampered_with_are_refused() -> None:
    cohort = Cohort(a_session())
    vector, adverts = cohort.vectors["ada"], cohort.adverts_for("ada")
    bob, company = adverts["bob"], cohort.companies["ada"]
    sealed = bob.shares["ada"]
    for at in (0, keys.NONCE_SIZE, len(sealed) - 1):
        bent = bytes([*sealed[:at], sealed[at] ^ 1, *sealed[at + 1 :]])
        refuses(company, vector, "bad_share", adverts | {"bob": replace(bob, shares={"ada": bent})})
    # Another mask key or commitment under genuine shares, as the coordinator would forge it and as bob might.
    stranger = keys.public_key(keys.new_private_key())
    for changes in ({"public": stranger}, {"commitment": stranger}):
        forged = replace(bob, **changes)
        refuses(company, vector, "bad_signature", adverts | {"bob": forged})
        refuses(company, vector, "bad_share", adverts | {"bob": signed_by_bob(cohort, forged)})
    # Genuine shares that were sealed for somebody else, or in another session.
    for_cyd = {"ada": cohort.adverts["bob"].shares["cyd"]}
    refuses(company, vector, "bad_share", adverts | {"bob": replace(bob, shares=for_cyd)})
    later = replace(cohort.session, round=4)
    other = cohort.start("bob", session=later).advert()
    replayed = replace(other.for_recipient("ada"), session=cohort.session.digest())
    refuses(company, vector, "bad_signature", adverts | {"bob": replayed})
    refuses(company, vector, "bad_share", adverts | {"bob": signed_by_bob(cohort, replayed)})


def signed_by_bob(cohort: Cohort, advert: Advert) -> Advert:
    """What only bob could make: an advert that contradicts its own sealed shares."""
    parts = cohort.session.digest(), advert.public, advert.commitment
    return replace(advert, signature=cohort.members["bob"].sign("advert", *parts))


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
def test_vectors_of_the_wrong_kind_are_refused(vector: Any) -> None:
    cohort = Cohort(a_session(bits=16))
    refused("bad_vector", cohort.companies["ada"].mask, vector, cohort.adverts_for("ada"))


# What the coordinator's side insists on


def test_the_aggregation_refuses_messages_that_do_not_fit() -> None:
    cohort = Cohort(a_session(bits=22))
    refused("not_in_roster", Aggregation, cohort.session, a_roster(NAMES[:3]))
    ada, aggregation = cohort.adverts["ada"], Aggregation(cohort.session, cohort.roster)
    refused("not_in_cohort", aggregation.add_advert, "zoe", ada)
    refused("wrong_session", aggregation.add_advert, "ada", replace(ada, session=b"0" * 32))
    refused("bad_signature", aggregation.add_advert, "bob", replace(ada, shares=cohort.adverts["bob"].shares))
    useless = cohort.members["ada"].sign("advert", cohort.session.digest(), bytes(32), ada.commitment)
    refused("bad_key", aggregation.add_advert, "ada", replace(ada, public=bytes(32), signature=useless))
    refused("bad_share", aggregation.add_advert, "ada", ada.for_recipient("bob"))
    refused("bad_share", aggregation.add_advert, "ada", replace(ada, shares=dict.fromkeys(ada.shares, b"")))
    refused("malformed", aggregation.add_advert, "ada", replace(ada, commitment=b""))
    for name in ("ada", "bob", "cyd"):
        refused("too_few", aggregation.close_adverts)
        aggregation.add_advert(name, cohort.adverts[name])
    refused("duplicate", aggregation.add_advert, "ada", ada)
    empty = np.zeros(packing.packed_size(50, 22), dtype=np.uint8)
    refused("wrong_phase", aggregation.add_masked, "ada", empty)
    aggregation.close_adverts()
    refused("wrong_phase", aggregation.add_advert, "dan", cohort.adverts["dan"])
    refused("not_in_cohort", aggregation.add_masked, "dan", empty)
    for vector in (empty[:-1], empty.astype(np.uint32), empty.reshape(2, -1), empty[::-1], bytes(len(empty))):
        refused("bad_vector", aggregation.add_masked, "ada", vector)
    refused("bad_vector", aggregation.add_masked, "ada", np.full_like(empty, 255))  # padding that is not zero
    del cohort.adverts["dan"]
    for name in ("ada", "bob", "cyd"):
        refused("too_few", aggregation.close_masked)
        masked = cohort.companies[name].mask(cohort.vectors[name], cohort.adverts_for(name))
        aggregation.add_masked(name, masked)
    refused("duplicate", aggregation.add_masked, "ada", empty)
    refused("wrong_phase", aggregation.open)
    survivors = aggregation.close_masked()
    signed = {name: cohort.companies[name].confirm(survivors) for name in survivors.names}
    refused("not_in_cohort", aggregation.add_confirmation, "dan", signed["ada"])
    refused("wrong_session", aggregation.add_confirmation, "ada", replace(signed["ada"], session=b"0" * 32))
    refused("bad_signature", aggregation.add_confirmation, "ada", signed["bob"])
    for name, confirmation in signed.items():
        refused("too_few", aggregation.close_confirmations)
        aggregation.add_confirmation(name, confirmation)
    refused("duplicate", aggregation.add_confirmation, "ada", signed["ada"])
    proof = aggregation.close_confirmations()
    answers = {name: cohort.companies[name].unmask(proof) for name in survivors.names}
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
    assert np.array_equal(aggregation.open()[0], cohort.total(survivors.names))
    refused("wrong_phase", aggregation.open)


@pytest.mark.parametrize("kind", ["seeds", "keys"])
def test_a_false_share_is_noticed_and_opens_nothing(kind: str) -> None:
    cohort = Cohort(a_session())
    aggregation = cohort.aggregation()
    aggregation.close_adverts()
    for name in NAMES[:3]:
        masked = cohort.companies[name].mask(cohort.vectors[name], cohort.adverts_for(name))
        aggregation.add_masked(name, masked)
    survivors = aggregation.close_masked()
    for name in survivors.names:
        aggregation.add_confirmation(name, cohort.companies[name].confirm(survivors))
    proof = aggregation.close_confirmations()
    for name in survivors.names:
        answer = cohort.companies[name].unmask(proof)
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


def decoder(message: Any) -> Any:
    """Its class's `from_bytes`; a company's state is read by that company."""
    if isinstance(message, CompanySession):
        return lambda data: CompanySession.from_bytes(data, message._member)
    return type(message).from_bytes


def messages() -> list[Any]:
    cohort = Cohort(a_session(4, run="zürich"))
    masked, confirmed, done = (cohort.masked("bob") for _ in range(3))
    survivors = cohort.survivors(NAMES[:3])
    confirmation = confirmed.confirm(survivors)
    done.confirm(survivors)
    proof = cohort.confirmations(NAMES[:3], NAMES[:3])
    answer = done.unmask(proof)
    ada = cohort.adverts["ada"]
    whole = [cohort.session, ada, ada.for_recipient("bob"), survivors, confirmation, proof, answer]
    return [*whole, cohort.keys["ada"], cohort.companies["ada"], masked, confirmed, done]


MESSAGES = messages()
VALID = [message.to_bytes() for message in MESSAGES]
DECODERS = [decoder(message) for message in MESSAGES]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_bytes_and_back(message: Any) -> None:
    again = decoder(message)(message.to_bytes())
    assert again.to_bytes() == message.to_bytes()
    if not isinstance(message, ChannelKeys | CompanySession):
        assert again == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_truncated_extended_and_foreign_bytes_are_refused(message: Any) -> None:
    data, decode = message.to_bytes(), decoder(message)
    for size in range(len(data)):
        with pytest.raises(ProtocolError):
            decode(data[:size])
    refused("malformed", decode, data + b"\0")
    refused("malformed", decode, data[:4] + b"\1" + data[5:])  # another version
    for other in MESSAGES:
        if type(other) is not type(message):
            refused("malformed", decoder(other), data)


def decode_or_refuse(decode: Any, data: bytes) -> None:
    """What was accepted has one encoding only, the one it came in."""
    try:
        message = decode(data)
    except ProtocolError:
        return
    assert message.to_bytes() == data


@settings(max_examples=150)
@given(
    decode=st.sampled_from(DECODERS), head=st.sampled_from(VALID), keep=st.integers(0, 30), junk=st.binary()
)
def test_junk_raises_nothing_but_a_protocol_error(decode: Any, head: bytes, keep: int, junk: bytes) -> None:
    decode_or_refuse(decode, junk)
    decode_or_refuse(decode, head[:keep] + junk)


@settings(max_examples=300)
@given(message=st.sampled_from(MESSAGES), data=st.data())
def test_altered_bytes_raise_nothing_but_a_protocol_error(message: Any, data: st.DataObject) -> None:
    altered = bytearray(message.to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        altered[data.draw(st.integers(0, len(altered) - 1))] = data.draw(st.integers(0, 255))
    decode_or_refuse(decoder(message), bytes(altered))


COHORT = Cohort(a_session())


@settings(max_examples=150, deadline=None)
@given(at=st.integers(6, 400), bit=st.integers(0, 7))
def test_an_advert_with_any_bit_flipped_is_refused_by_its_recipient(at: int, bit: int) -> None:
    """Every bit of an advert counts."""
    bob = bytearray(COHORT.adverts["bob"].for_recipient("ada").to_bytes())
    at = min(at, len(bob) - 1)
    bob[at] ^= 1 << bit

    def receive() -> None:
        adverts = COHORT.adverts_for("ada") | {"bob": Advert.from_bytes(bytes(bob))}
        COHORT.reloaded("ada").mask(COHORT.vectors["ada"], adverts)

    with pytest.raises(ProtocolError):
        receive()


def test_states_that_contradict_themselves_are_refused() -> None:
    cohort = Cohort(a_session())
    for name, value in (("_shares", {}), ("_receive", {}), ("_floor", 2), ("_survivors", ("ada",))):
        company = cohort.reloaded("ada")
        setattr(company, name, value)
        refused("malformed", cohort.again, company)
    confirmed, _ = cohort.confirmed("ada", NAMES[:4])
    for name, value in (("_shares", {}), ("_survivors", ()), ("_survivors", ("bob",)), ("_transcript", b"")):
        company = cohort.again(confirmed)
        setattr(company, name, value)
        refused("malformed", cohort.again, company)
    refused("malformed", CompanySession.from_bytes, confirmed.to_bytes(), cohort.members["bob"])


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
            found.append(masks.pair_mask_key(keys.loaded(private), digest, own, (name, peer))[0])
            found += ada.share_keys(digest, "ada", name, peer)
        there, back = bob.share_keys(digest, "bob", "ada", ada.public)
        assert (back, there) == ada.share_keys(digest, "ada", "bob", bob.public)
    assert len(set(found)) == len(found)


def test_no_repr_shows_a_secret() -> None:
    cohort = Cohort(a_session())
    company = cohort.companies["ada"]
    hidden = [company._private, company._seed, *company._receive.values(), *company._shares.values()]
    hidden += [channel._private for channel in cohort.keys.values()]
    hidden += [identity(name).private_bytes() for name in NAMES[:4]]
    shown = [repr(company), repr(cohort.keys["ada"]), repr(cohort.aggregation())]
    shown += [repr(identity("ada")), repr(cohort.members["ada"]), repr(cohort.roster)]
    masked, _ = cohort.confirmed("ada", NAMES[:3])
    hidden += list(masked._shares.values())
    answer = masked.unmask(cohort.confirmations(NAMES[:3], NAMES[:3]))
    hidden += [*answer.seeds.values(), *answer.keys.values()]
    shown += [repr(masked), repr(answer), repr(cohort.adverts["ada"]), str(answer), f"{company}"]
    for secret in hidden:
        for text in shown:
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text


def test_secrets_are_let_go_as_soon_as_they_have_served() -> None:
    cohort = Cohort(a_session())
    company = cohort.reloaded("ada")
    own, peers = [company._private, company._seed], list(company._receive.values())
    company.mask(cohort.vectors["ada"], cohort.adverts_for("ada"))
    state = company.to_bytes()
    assert not any(secret in state for secret in [*own, *peers])
    shares = list(company._shares.values())
    assert len(shares) == 4
    company.confirm(cohort.survivors(NAMES[:4]))
    company.unmask(cohort.confirmations(NAMES[:4], NAMES[:4]))
    assert not any(share[:33] in company.to_bytes() or share[33:] in company.to_bytes() for share in shares)


def test_channel_and_identity_keys_are_not_in_the_state_of_a_session() -> None:
    cohort = Cohort(a_session())
    state = cohort.companies["ada"].to_bytes()
    assert cohort.keys["ada"]._private not in state
    assert identity("ada").private_bytes() not in state


def test_every_code_is_documented() -> None:
    folder = Path(str(secure_aggregation.__file__)).parent
    source = "".join(path.read_text() for path in folder.glob("*.py"))
    used = set(re.findall(r'ProtocolError\(\s*"(\w+)"', source))
    documented = set(re.findall(r"^    (\w+)  +\S", str(secure_aggregation.__doc__), re.MULTILINE))
    assert used == documented
    text = (folder.parent / "secure_aggregation.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \| ", text.partition("## Codes")[2], re.MULTILINE)) == used
    domain = re.search(r'`DOMAIN` is the text "(.+)"', text)
    assert domain is not None
    assert domain[1] == wire.DOMAIN
