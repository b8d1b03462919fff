"""Attacks on secure aggregation, each with the code that refuses it: a coordinator that does whatever it likes,
alone or with fewer than a third of the companies, against the state machines and against the real app."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from support.coordinating import NODES, Coordinator
from support.secagg import (
    NAMES,
    Cohort,
    a_member,
    a_roster,
    a_session,
    identity,
    names_of,
    refused,
    signed_key,
)

from fedblocks.blocks import digest
from fedblocks.client.app import app as client_app
from fedblocks.client.replay_guard import Steps
from fedblocks.errors import PrivacyError, ProtocolError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.privacy.dp_sgd import clip_to_norm
from fedblocks.privacy.quantisation import FixedPoint
from fedblocks.privacy.secure_aggregation import (
    Advert,
    Aggregation,
    ChannelKey,
    ChannelKeys,
    CompanySession,
    Confirmations,
    Identity,
    Member,
    Roster,
    Session,
    Survivors,
    UnmaskShares,
    keys,
    packing,
    shamir,
    wire,
)
from fedblocks.privacy.secure_aggregation.identity import CHANNEL
from fedblocks.protocol.identity import load_member
from fedblocks.protocol.messages import (
    CONFIRM,
    JOIN,
    KEYS,
    TRAIN,
    UNMASK,
    ConfirmRequest,
    JoinReply,
    JoinRequest,
    KeysRequest,
    UnmaskRequest,
)
from fedblocks.protocol.messages import refused as code_of
from fedblocks.server.cohort import join
from fedblocks.server.grid import InProcessGrid
from fedblocks.settings import SimulationSettings


@pytest.fixture
def app(small: SimulationSettings, tmp_path: Path) -> Coordinator:
    return Coordinator(prepare(small, tmp_path / "run"))


# One company's seed and key


def test_a_victim_cannot_be_alive_and_dropped() -> None:
    """Both shares of one company from enough peers would open its vector."""
    cohort = Cohort(a_session(5))
    company = cohort.masked("ada")
    twice = Survivors(session=cohort.session.digest(), names=("ada", "bob", "bob", "cyd", "dan"))
    refused("malformed", Survivors.from_bytes, twice.to_bytes())
    refused("bad_survivors", company.confirm, twice)
    company.confirm(cohort.survivors(NAMES[:5]))
    refused("second_set", company.confirm, cohort.survivors(NAMES[:4]))
    answer = company.unmask(cohort.confirmations(NAMES[:5], NAMES[:5]))
    refused("bad_survivors", replace, answer, keys={"bob": bytes(shamir.SHARE_SIZE)})
    both = wire.table({"bob": bytes(shamir.SHARE_SIZE)})
    head = wire.header(wire.UNMASK_SHARES) + wire.blob(cohort.session.digest())
    refused("bad_survivors", UnmaskShares.from_bytes, head + both + both)


@pytest.mark.parametrize(("n", "colluders"), [(4, 1), (5, 1), (7, 2)])
def test_two_survivor_sets_shown_to_two_groups_never_open_one_company(n: int, colluders: int) -> None:
    """Fewer than n/3 companies sign whatever the coordinator wants, with all they hold; every split of the others."""
    cohort = Cohort(a_session(n))
    everybody, victim = names_of(n), names_of(n)[-1]
    without = everybody[:-1]
    corrupt, honest = everybody[:colluders], everybody[colluders:-1]
    held = {
        (name, names): cohort.confirmed(name, names)
        for names in (everybody, without)
        for name in everybody
        if name in names
    }
    for told_dead in product([False, True], repeat=len(honest)):
        shown = {name: without if dead else everybody for name, dead in zip(honest, told_dead, strict=True)}
        shown[victim] = everybody
        seeds = keys_ = colluders  # they hand over both shares of the victim
        for name, names in shown.items():
            company = cohort.again(held[name, names][0])
            signers = [peer for peer in shown if shown[peer] == names] + list(corrupt)
            signatures = {peer: held[peer, names][1].signature for peer in signers}
            proof = Confirmations(session=cohort.session.digest(), signatures=signatures)
            if len(signers) < cohort.session.threshold:
                refused("too_few", company.unmask, proof)
                continue
            answer = company.unmask(proof)
            seeds += victim in answer.seeds
            keys_ += victim in answer.keys
        assert min(seeds, keys_) < cohort.session.threshold


def test_the_app_signs_one_set_and_gives_no_share_to_the_smaller_group(app: Coordinator) -> None:
    session = app.session()
    app.trained(session)
    everybody, without = session.cohort, session.cohort[:4]
    told = {1: without, 2: without, 3: everybody, 4: everybody, 5: everybody}
    signatures = app.signatures(session, told)
    assert code_of(app.confirm(1, session.digest(), everybody)) == "second_set"
    assert code_of(app.confirm(4, session.digest(), without)) == "second_set"
    assert code_of(app.confirm(5, session.digest(), without)) == "bad_survivors"
    for node, names in told.items():
        same = {f"company-{n - 1}" for n in told if told[n] == names}
        mine = {name: signature for name, signature in signatures.items() if name in same}
        assert code_of(app.unmask(node, session.digest(), mine)) == "too_few"
        padded = {name: signature for name, signature in signatures.items() if name in names}
        assert code_of(app.unmask(node, session.digest(), padded)) == "bad_signature"


# Keys in the middle


def test_a_channel_key_of_the_coordinators_own_making_is_refused() -> None:
    cohort = Cohort(a_session())
    session, mine = replace(cohort.session, round=4), ChannelKeys.generate()
    coordinator = Identity.generate()
    forger = Member("bob", coordinator, Roster(dict(cohort.roster.members) | {"bob": coordinator.public}))
    bob = cohort.channels["bob"]
    forged = [
        replace(bob, public=mine.public),
        mine.signed(forger, session.run, session.settings_digest),  # signed, by an identity nobody has pinned
        replace(bob, signature=bob.signature[:-1]),
        replace(bob, signature=b""),
        cohort.channels["cyd"],  # another member's key under bob's name
        cohort.keys["bob"].signed(cohort.members["bob"], "run-0", session.settings_digest),  # of another run
        cohort.keys["bob"].signed(cohort.members["bob"], session.run, b"t" * 32),  # for other settings
    ]
    for key in forged:
        channels = cohort.channels | {"bob": key}
        refused("bad_signature", cohort.start, "ada", session=session, channels=channels)


def test_a_mask_key_in_the_middle_is_refused_before_any_secret_is_derived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cohort = Cohort(a_session())
    company, adverts = cohort.companies["ada"], cohort.adverts_for("ada")
    mine = keys.public_key(keys.new_private_key())
    forger = Identity.generate()
    statement = cohort.roster.statement(
        "advert", "bob", cohort.session.digest(), mine, adverts["bob"].commitment
    )
    monkeypatch.setattr(keys, "agree", None)
    monkeypatch.setattr(keys, "unseal", None)
    for signature in (adverts["bob"].signature, forger.sign(statement), bytes(64)):
        bent = replace(adverts["bob"], public=mine, signature=signature)
        refused("bad_signature", company.check_adverts, adverts | {"bob": bent})
        refused("bad_signature", company.mask, cohort.vectors["ada"], adverts | {"bob": bent})


def test_companies_with_different_rosters_do_not_work_together() -> None:
    """Would catch a member added to one company's list alone."""
    session = a_session()
    wide = a_roster([*NAMES[:4], "zoe"])
    cohort, other = Cohort(session), Cohort(session, roster=wide)
    channels = cohort.channels | {"bob": other.channels["bob"]}
    refused("bad_signature", cohort.start, "ada", session=replace(session, round=4), channels=channels)
    adverts = cohort.adverts_for("ada") | {"bob": other.adverts["bob"].for_recipient("ada")}
    refused("bad_signature", cohort.companies["ada"].mask, cohort.vectors["ada"], adverts)


def test_a_signature_for_one_purpose_is_none_for_another() -> None:
    roster, ada = a_roster(NAMES[:3]), a_member("ada", a_roster(NAMES[:3]))
    signature = ada.sign("advert", b"x")
    roster.check(signature, "advert", "ada", b"x")
    wrong: list[tuple[Any, ...]] = [
        ("survivors", "ada", b"x"),
        ("advert", "bob", b"x"),
        ("advert", "ada", b"x", b""),
        ("advert", "ada", b"y"),
        ("advert", "ada"),
    ]
    for purpose, sender, *parts in wrong:
        refused("bad_signature", roster.check, signature, purpose, sender, *parts)
    refused("not_in_roster", roster.check, signature, "advert", "zoe", b"x")


# Cohorts and thresholds


@pytest.mark.parametrize("threshold", [0, 1])
def test_threshold_1_is_no_session(threshold: int) -> None:
    refused("bad_session", a_session, threshold=threshold)
    session = a_session()
    data = session.to_bytes()
    bent = data[:-12] + wire.u32(threshold) + data[-8:]  # threshold, length and bits are last
    assert Session.from_bytes(data[:-12] + wire.u32(3) + data[-8:]) == session
    refused("bad_session", Session.from_bytes, bent)


def test_a_low_threshold_is_refused_by_the_company_and_by_its_app(app: Coordinator) -> None:
    cohort = Cohort(a_session(5))
    refused("low_threshold", cohort.start, "ada", session=a_session(5, threshold=2))
    assert code_of(app.keys(app.session(threshold=2))[1]) == "low_threshold"


def fakes(names: Iterable[str]) -> dict[str, Identity]:
    return {name: Identity.generate() for name in names}


def test_one_company_among_fakes_is_refused(app: Coordinator) -> None:
    """Whether the fakes have names of their own, or those of real companies that are not there."""
    for others in (("fake-1", "fake-2", "fake-3"), NAMES[1:4]):
        session = a_session(cohort=tuple(sorted(("ada", *others))))
        pinned = a_roster(NAMES)
        made = fakes(others)
        invented = Roster({name: i.public for name, i in made.items()} | {"ada": identity("ada").public})
        channel = ChannelKeys.generate()
        channels = {"ada": signed_key(channel, "ada", session, pinned)} | {
            name: ChannelKeys.generate().signed(
                Member(name, made[name], invented), session.run, session.settings_digest
            )
            for name in others
        }
        code = "not_in_roster" if "fake-1" in others else "bad_signature"
        refused(code, CompanySession.start, session, a_member("ada", pinned), channel, channels, 3)
    smuggled = app.session(cohort=("company-0", "fake-1", "fake-2"), threshold=3)
    assert code_of(app.keys(smuggled)[1]) == "not_in_roster"
    alone = app.session(cohort=("company-0", "company-1"), threshold=2)
    assert code_of(app.keys(alone)[1]) == "small_cohort"


def test_a_cohort_that_shrinks_after_the_keys_is_refused() -> None:
    cohort = Cohort(a_session(5), minimum_cohort=5)
    company, vector = cohort.companies["ada"], cohort.vectors["ada"]
    refused("small_cohort", company.mask, vector, cohort.adverts_for("ada", NAMES[:4]))
    company.mask(vector, cohort.adverts_for("ada"))
    refused("small_cohort", company.confirm, cohort.survivors(NAMES[:4]))


# Replay and order


def test_messages_of_another_round_are_refused_in_every_phase() -> None:
    cohort = Cohort(a_session())
    later = replace(cohort.session, round=4)
    old = cohort.companies["ada"]
    company = cohort.start("ada", session=later)
    refused(
        "wrong_session",
        company.mask,
        cohort.vectors["ada"],
        cohort.adverts_for("ada") | {"ada": company.advert()},
    )
    peers = {name: cohort.start(name, session=later) for name in NAMES[1:4]}
    adverts = {name: peer.advert().for_recipient("ada") for name, peer in peers.items()}
    company.mask(cohort.vectors["ada"], adverts | {"ada": company.advert()})
    refused("wrong_session", company.confirm, cohort.survivors(NAMES[:4]))
    company.confirm(Survivors(session=later.digest(), names=NAMES[:4]))
    stale = cohort.confirmations(NAMES[:4], NAMES[:4])
    refused("wrong_session", company.unmask, stale)
    refused("bad_signature", company.unmask, replace(stale, session=later.digest()))
    assert old.advert()  # its own session is untouched


def test_a_session_begun_again_takes_no_old_signature() -> None:
    """All companies lose their state and start the same session anew: nothing signed before fits the new keys."""
    session = a_session()
    before, after = Cohort(session), Cohort(session)
    company, _ = after.confirmed("ada", NAMES[:4])
    refused("bad_signature", company.unmask, before.confirmations(NAMES[:4], NAMES[:4]))
    mixed = after.adverts_for("ada") | {"bob": before.adverts["bob"].for_recipient("ada")}
    refused("bad_share", after.companies["ada"].mask, after.vectors["ada"], mixed)
    refused("replay", after.start, "ada")


@pytest.mark.parametrize("phase", ["keys", "train", "confirm", "unmask"])
def test_a_phase_out_of_order_or_a_second_time_is_refused(app: Coordinator, phase: str) -> None:
    session = app.session()
    session_digest, everybody = session.digest(), session.cohort
    requests = app.train_requests(session)
    train = requests[1].to_record()
    if phase == "keys":
        repeated = KeysRequest(session, app.channels()).to_record()
        assert code_of(app.ask(1, KEYS, repeated)) is None  # new channel keys: a new beginning
        assert code_of(app.ask(1, KEYS, repeated)) == "replay"
        return
    for early in (app.confirm(1, session_digest, everybody), app.unmask(1, session_digest, {})):
        assert code_of(early) == "wrong_phase"
    for node in NODES:
        assert code_of(app.ask(node, TRAIN, requests[node].to_record())) is None
    assert code_of(app.ask(1, TRAIN, train)) == "wrong_phase"
    if phase == "train":
        return
    assert code_of(app.unmask(1, session_digest, {})) == "wrong_phase"
    signatures = app.signatures(session, dict.fromkeys(NODES, everybody))
    assert code_of(app.ask(1, TRAIN, train)) == "wrong_phase"
    if phase == "confirm":
        return
    assert code_of(app.unmask(1, session_digest, signatures)) is None
    assert code_of(app.unmask(1, session_digest, signatures)) == "wrong_phase"
    assert code_of(app.confirm(1, session_digest, everybody)) == "wrong_phase"


# Models


def test_another_model_for_one_company_is_noticed_by_all() -> None:
    """The victim alone would be summed with updates of another model, and could be told apart."""
    cohort = Cohort(a_session())
    marked = replace(cohort.session, model_digest=b"x" * 32)
    victim = cohort.start("dan", session=marked)
    adverts = cohort.adverts_for("ada") | {"dan": victim.advert().for_recipient("ada")}
    refused("wrong_session", cohort.companies["ada"].mask, cohort.vectors["ada"], adverts)
    relabelled = replace(adverts["dan"], session=cohort.session.digest())
    refused(
        "bad_signature", cohort.companies["ada"].mask, cohort.vectors["ada"], adverts | {"dan": relabelled}
    )
    shown = {name: cohort.adverts[name].for_recipient("dan") for name in NAMES[:3]}
    shown["dan"] = victim.advert()
    refused("wrong_session", victim.mask, cohort.vectors["dan"], shown)
    swapped = {name: replace(advert, session=marked.digest()) for name, advert in shown.items()}
    refused("bad_signature", victim.mask, cohort.vectors["dan"], swapped)


def test_the_app_refuses_another_model_than_its_peers_before_it_is_charged(app: Coordinator) -> None:
    session = app.session()
    state = {name: value + 1e-3 for name, value in app.model.blocks[0].items()}
    marked = replace(session, model_digest=digest(state))
    requests = app.train_requests(session, node_1=marked)
    to_victim = replace(requests[1], states={0: state})
    assert code_of(app.ask(1, TRAIN, to_victim.to_record())) == "wrong_session"
    assert code_of(app.ask(2, TRAIN, requests[2].to_record())) == "wrong_session"
    assert app.charges() == 0


# Overflow


@pytest.mark.parametrize("bits", [16, 22, 32])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_updates_at_the_bound_from_everybody_do_not_wrap(bits: int, sign: float) -> None:
    n = 7
    codec = FixedPoint(bound=1.0, parties=n, bits=bits)
    cohort = Cohort(a_session(n, bits=bits, length=5))
    vector = np.zeros(5)
    vector[2] = sign
    residues = codec.encode(vector)
    aggregation = cohort.aggregation()
    aggregation.close_adverts()
    for name, company in cohort.companies.items():
        aggregation.add_masked(name, company.mask(residues, cohort.adverts_for(name)))
    survivors = aggregation.close_masked()
    for name in survivors.names:
        aggregation.add_confirmation(name, cohort.companies[name].confirm(survivors))
    proof = aggregation.close_confirmations()
    for name in proof.signatures:
        aggregation.add_shares(name, cohort.companies[name].unmask(proof))
    total = codec.decode_sum(aggregation.open()[0])
    assert np.abs(total - n * vector).max() <= codec.max_error


@pytest.mark.parametrize("size", [1.1, 1e9, 1e300, float("inf"), float("nan")])
def test_a_huge_update_is_refused_or_cut_to_the_bound_before_it_is_an_integer(size: float) -> None:
    codec = FixedPoint(bound=1.0, parties=5, bits=22)
    update = torch.full((1000,), size, dtype=torch.float64)
    with pytest.raises(PrivacyError):
        codec.encode(update.numpy())
    try:
        bounded = clip_to_norm(update, 1.0).numpy()
    except PrivacyError:
        assert not np.isfinite(size)
        return
    levels = codec.encode(bounded).view(np.int32).astype(np.int64)
    levels = (levels + 2**21) % 2**22 - 2**21
    assert np.abs(levels).max() * 5 < 2**21


# Malformed, truncated, oversized


def test_oversized_messages_are_refused_before_they_are_read() -> None:
    big = bytes(wire.MAX_MESSAGE + 1)
    for decode in (Session.from_bytes, Advert.from_bytes, Survivors.from_bytes, Confirmations.from_bytes):
        refused("malformed", decode, big)
    digest = wire.blob(b"d" * 32)
    many = wire.u32(2**32 - 1)
    refused("malformed", Survivors.from_bytes, wire.header(wire.SURVIVORS) + digest + many)
    refused("malformed", Confirmations.from_bytes, wire.header(wire.CONFIRMATIONS) + digest + many)
    refused("malformed", UnmaskShares.from_bytes, wire.header(wire.UNMASK_SHARES) + digest + many)
    long = wire.header(wire.SURVIVORS) + wire.u32(2**32 - 1) + b"d" * 32
    refused("malformed", Survivors.from_bytes, long)


@pytest.mark.parametrize("change", [-1, 1, 1 << 20])
def test_a_masked_vector_of_another_size_is_refused_and_adds_nothing(change: int) -> None:
    cohort = Cohort(a_session(bits=22))
    aggregation = cohort.aggregation()
    aggregation.close_adverts()
    packed = cohort.companies["ada"].mask(cohort.vectors["ada"], cohort.adverts_for("ada"))
    refused("bad_vector", aggregation.add_masked, "ada", np.resize(packed, len(packed) + change))
    bent = packed.copy()
    bent[-1] ^= 0x80  # the padding of 50 values in lanes of 16
    refused("bad_vector", aggregation.add_masked, "ada", bent)
    assert not aggregation._sum.any()
    aggregation.add_masked("ada", packed)


@pytest.mark.parametrize("size", [0, 40, 100])
def test_truncated_messages_to_the_app_are_malformed(app: Coordinator, size: int) -> None:
    session = app.session()
    app.trained(session)
    survivors = Survivors(session=session.digest(), names=session.cohort).to_bytes()
    for data in (survivors[:size], survivors + bytes(size + 1)):
        record = RecordDict({"message": ConfigRecord({"survivors": data})})
        assert code_of(app.ask(1, CONFIRM, record)) == "malformed"
    assert app.signatures(session, {1: session.cohort})


def test_the_coordinators_side_puts_a_bad_message_down_to_its_sender() -> None:
    """One company's forged signature must not cost the others their round."""
    cohort = Cohort(a_session(4))
    aggregation = Aggregation(cohort.session, cohort.roster)
    bent = replace(cohort.adverts["dan"], signature=bytes(64))
    refused("bad_signature", aggregation.add_advert, "dan", bent)
    for name in NAMES[:3]:
        aggregation.add_advert(name, cohort.adverts[name])
    assert set(aggregation.close_adverts()) == set(NAMES[:3])


def test_packing_refuses_bits_beyond_the_vector() -> None:
    packed = packing.pack(np.arange(5, dtype=np.uint32), 22)
    packed[-1] |= 0x80
    refused("bad_vector", packing.unpack, packed, 5, 22)


def test_a_second_round_with_another_cohort_is_refused(app: Coordinator) -> None:
    """Would catch two sums that differ by one company, of which the difference is its update."""
    channels = app.channels()

    def code(round_: int, cohort: tuple[str, ...]) -> str | None:
        session = app.session(round=round_, cohort=cohort, threshold=4)
        return code_of(app.ask(1, KEYS, KeysRequest(session, channels).to_record()))

    everybody = tuple(f"company-{i}" for i in range(5))
    assert code(1, everybody) is None
    assert code(2, everybody[:4]) == "bad_session"
    assert code(2, everybody) is None


# Messages at once: Flower gives each a process of its own, which starts from the state it finds


def test_a_set_that_was_left_behind_in_an_older_state_is_not_signed_and_not_answered(
    app: Coordinator,
) -> None:
    """Would catch the break of everything: seed shares of one company from one copy of a state, and its key shares
    from another, which open its single update."""
    session = app.session()
    app.trained(session)
    digest_, everybody = session.digest(), session.cohort
    masked = {node: app.state(node) for node in NODES}
    signatures = app.signatures(session, dict.fromkeys(NODES, everybody))
    confirmed = {node: app.state(node) for node in NODES}
    for node in NODES:
        assert code_of(app.unmask(node, digest_, signatures)) is None
    for node in NODES:
        app.put_back(node, masked[node])
        assert code_of(app.confirm(node, digest_, everybody[:4])) in {"second_set", "bad_survivors"}
        assert code_of(app.confirm(node, digest_, everybody)) is None
        app.put_back(node, confirmed[node])
        assert code_of(app.unmask(node, digest_, signatures)) == "replay"


def test_a_session_begun_from_an_older_state_is_refused(app: Coordinator) -> None:
    """Would catch two sessions under one digest and one channel key: each would hold the peers' shares."""
    session, channels = app.session(), app.channels()
    request = KeysRequest(session, channels).to_record()
    before = app.state(1)
    assert code_of(app.ask(1, KEYS, request)) is None
    app.put_back(1, before)
    assert code_of(app.ask(1, KEYS, request)) == "replay"
    other = app.session(round=2, cohort=session.cohort[:4], threshold=4)
    assert code_of(app.ask(1, KEYS, KeysRequest(other, channels).to_record())) == "bad_session"


def test_training_again_from_an_older_state_is_refused_and_charged_once(app: Coordinator) -> None:
    """Would catch two vectors under the same masks: their difference is free of them."""
    request = app.train_request(app.session()).to_record()
    before = app.state(1)
    assert code_of(app.ask(1, TRAIN, request)) is None
    app.put_back(1, before)
    assert code_of(app.ask(1, TRAIN, request)) == "replay"
    assert app.charges() == 1


def test_a_step_is_taken_by_one_of_many_processes_at_once(tmp_path: Path) -> None:
    Steps(tmp_path / "steps.sqlite").begin(0, "")

    def taken(value: bytes) -> int:
        try:
            Steps(tmp_path / "steps.sqlite").take("confirmed", b"session", value=value)
        except ProtocolError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(taken, [b"%d" % i for i in range(64)])) == 1
        assert sum(pool.map(taken, [b""] * 8)) == 0


def test_a_run_that_is_joined_again_keeps_its_cohort(app: Coordinator) -> None:
    """Would catch a cohort that is changed by joining the same run once more."""
    session = app.session()
    app.keys(session)
    other = app.session(round=2, cohort=session.cohort[:4], threshold=4)
    assert code_of(app.keys(other)[1]) == "bad_session"
    assert code_of(app.keys(app.session(round=2))[1]) is None


def test_nor_does_a_changed_plan_of_the_same_name_change_it(app: Coordinator) -> None:
    """Would catch a cohort that is kept for the plan's digest: a new time limit is a new digest."""
    app.keys(app.session())
    training = app.plan.training.model_copy(update={"message_timeout": 601.0})
    app.plan = app.plan.model_copy(update={"training": training})
    assert code_of(app.keys(app.session(round=2, cohort=app.session().cohort[:4]))[1]) == "bad_session"
    assert code_of(app.keys(app.session(round=2))[1]) is None


def test_a_run_trains_no_more_often_than_a_company_allows(app: Coordinator) -> None:
    """Would catch rounds repeated without end, each of them with a sum of its own."""
    steps = app.plan.training.local_steps
    planned = app.plan.training.releases(app.plan.model.blocks)
    rewrite(app.run.companies / "company-0" / "policy.toml", f"most_steps = {planned * steps + steps - 1}")
    codes = []
    for again in range(planned):
        request = app.train_request(app.session(round=1 + again % planned))
        codes.append(code_of(app.ask(1, TRAIN, request.to_record())))
    # Before anybody trains: the others would pay for a round that this company refuses.
    codes += [code_of(app.keys(app.session(round=round_))[1]) for round_ in (1, 2)]
    assert codes == [None] * planned + ["privacy"] * 2
    assert app.charges() == planned


def test_steps_of_a_run_are_counted_whatever_its_plan_calls_a_round(tmp_path: Path) -> None:
    """Would catch a count of trainings: a plan joined later, of fewer steps each, would get more of them."""
    steps = Steps(tmp_path / "steps.sqlite")
    steps.begin(0, "")
    for times in (4, 3, 1):
        steps.count("local steps", b"run", times=times, most=8)
    refused("too_many", steps.count, "local steps", b"run", times=1, most=8)
    steps.count("local steps", b"other", times=8, most=8)
    refused("too_many", steps.count, "local steps", b"third", times=9, most=8)


# What is joined


def rewrite(policy: Path, line: str) -> None:
    """Replace one line of a company's policy, or add it before the first table."""
    kept = [old for old in policy.read_text().splitlines() if not old.startswith(line.split(" = ")[0])]
    policy.write_text("\n".join([line, *kept]))


def test_companies_that_were_given_different_frozen_parts_do_not_work_together(app: Coordinator) -> None:
    """Would catch parts under which everybody's gradients vanish but the victim's: the sum would be its update."""
    dead = {name: torch.zeros_like(value) for name, value in app.model.shared.items()}
    channels = {}
    for node in NODES:
        request = JoinRequest(app.plan, app.model.shared if node == 1 else dead)
        reply = JoinReply.from_record(app.ask(node, JOIN, request.to_record()))
        channels[reply.company] = reply.channel
    for settings in (JoinRequest(app.plan, shared).digest() for shared in (app.model.shared, dead)):
        request = KeysRequest(app.session(settings_digest=settings), channels)
        codes = {code_of(app.ask(node, KEYS, request.to_record())) for node in NODES}
        assert codes == {"bad_signature", "bad_session"}


def test_a_plan_joined_between_keys_and_training_ends_the_open_session(app: Coordinator) -> None:
    """Would catch an update clipped, scaled or noised by another plan than the one all keys are bound to."""
    requests = app.train_requests(app.session())
    bent = app.plan.model_copy(update={"company_clip": 7 * app.plan.company_clip})
    assert code_of(app.ask(1, JOIN, JoinRequest(bent, app.model.shared).to_record())) is None
    assert code_of(app.ask(1, TRAIN, requests[1].to_record())) == "wrong_phase"
    assert app.charges() == 0


def test_shared_noise_is_not_put_under_a_threshold_meant_for_full_noise(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """The plan of a session is in local mode and lets four of five be opened; that of the training counts on all."""
    app = Coordinator(prepare(small, tmp_path / "run"))
    policy = app.run.companies / "company-0" / "policy.toml"
    rewrite(policy, "allow_shared_noise = true")
    requests = app.train_requests(app.session())
    changes = {"mode": "secure_step", "colluders": 1, "noise_multiplier": 2 * app.plan.noise_multiplier}
    changes["secure_aggregation"] = app.plan.secure_aggregation.model_copy(update={"bits": app.plan.bits})
    shared = app.plan.model_copy(update=changes)
    assert code_of(app.ask(1, JOIN, JoinRequest(shared, app.model.shared).to_record())) is None
    assert code_of(app.ask(1, TRAIN, requests[1].to_record())) == "wrong_phase"


@pytest.mark.parametrize(
    "line",
    ["minimum_noise_multiplier = 100.0", "minimum_cohort = 30", "least_colluders = 2", "most_steps = 1"],
)
def test_rules_that_a_company_tightens_during_a_run_hold_from_the_next_message(
    app: Coordinator, line: str
) -> None:
    """In every phase; would catch sessions that are begun in store, to be trained under rules long gone."""
    policy = app.run.companies / "company-0" / "policy.toml"
    before = policy.read_text()
    session = app.session()
    names, codes = session.cohort, []

    def tightened(phase: str, record: RecordDict) -> None:
        rewrite(policy, line)
        codes.append(code_of(app.ask(1, phase, record)))
        policy.write_text(before)

    tightened(KEYS, KeysRequest(session, app.channels()).to_record())
    requests = app.train_requests(session)
    tightened(TRAIN, requests[1].to_record())
    assert app.charges() == 0
    for node, request in requests.items():
        assert code_of(app.ask(node, TRAIN, request.to_record())) is None
    tightened(CONFIRM, ConfirmRequest(Survivors(session=session.digest(), names=names)).to_record())
    signatures = app.signatures(session, dict.fromkeys(NODES, names))
    confirmations = Confirmations(session=session.digest(), signatures=signatures)
    tightened(UNMASK, UnmaskRequest(confirmations).to_record())
    assert codes == ["privacy"] * 4
    assert code_of(app.unmask(1, session.digest(), signatures)) is None


def test_a_plan_may_not_count_on_fewer_colluders_than_a_company_does(app: Coordinator) -> None:
    """With everybody's own noise, too: the threshold follows the plan's number."""
    rewrite(app.run.companies / "company-0" / "policy.toml", "least_colluders = 3")
    request = JoinRequest(app.plan, app.model.shared).to_record()
    assert code_of(app.ask(1, JOIN, request)) == "privacy"
    app.plan = app.plan.model_copy(update={"colluders": 3})
    assert code_of(app.keys(app.session(threshold=4))[1]) == "low_threshold"
    assert code_of(app.keys(app.session(threshold=5, round=2))[1]) is None


# Texts


@pytest.mark.parametrize("name", ["run\n2026-01-01 INFO trained block-0", "a\x1b[2J", "b\u2028c", ""])
def test_a_run_cannot_write_lines_of_its_own_into_a_companys_log(app: Coordinator, name: str) -> None:
    request = JoinRequest(app.plan.model_copy(update={"run": name}), app.model.shared)
    assert code_of(app.ask(1, JOIN, request.to_record())) == "bad_input"


def test_no_text_of_a_message_can_pass_for_an_entry_of_the_log(app: Coordinator) -> None:
    forged = "2026-01-01 00:00:00,000 INFO trained block-0 in round 1"
    app.ask(1, JOIN, RecordDict({"message": ConfigRecord({"plan": json.dumps({f"x\n{forged}\x1b[2J": 1})})}))
    text = (app.run.companies / "company-0" / "company.log").read_text()
    assert f"\n    {forged}" in text or f"\\n{forged}" in text
    assert f"\n{forged}" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("code", ["<script>", "\x1b[2J", "a b", "x" * 65, 7, ["a"], b"privacy"])
def test_a_company_cannot_write_texts_into_the_coordinators_metrics(code: Any) -> None:
    assert code_of(RecordDict({"message": ConfigRecord({"refused": code})})) == "malformed"


@pytest.mark.parametrize("public", [bytes(32), b"short", bytes(33)])
def test_a_channel_key_of_no_use_is_put_down_to_its_owner_at_join(app: Coordinator, public: bytes) -> None:
    """Would catch a company that signs a key under which all others refuse every round, and nobody knows why."""
    settings = JoinRequest(app.plan, app.model.shared).digest()
    mallory = load_member(app.run.companies / "company-4", "company-4")
    signature = mallory.sign(CHANNEL, app.plan.run.encode(), settings, public)

    class Bending(InProcessGrid):
        def send_and_receive(self, messages: Iterable[Message], **named: Any) -> Iterable[Message]:
            replies = list(super().send_and_receive(messages, **named))
            for reply in replies:
                if reply.metadata.src_node_id == 5:
                    reply.content = JoinReply("company-4", ChannelKey(public, signature)).to_record()
            return replies

    grid = Bending(client_app, 5, {"run-dir": str(app.run.path)})
    refused("bad_key", join, grid, app.plan, app.model.shared, app.run.roster(), 5)
