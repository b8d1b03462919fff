"""The company's app against a coordinator that asks for too much: a code, no charge, no text out."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from support.coordinating import NODES, Coordinator
from typer.testing import CliRunner

from fedblocks.blocks import digest
from fedblocks.blocks.examples import Examples
from fedblocks.cli.main import app as cli
from fedblocks.client.app import release_labels
from fedblocks.client.company import Company
from fedblocks.client.policy import load_policy
from fedblocks.errors import InputError, PrivacyError, ProtocolError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.privacy.secure_aggregation import ChannelKey, ChannelKeys
from fedblocks.protocol.identity import load_member, load_roster, save_roster
from fedblocks.protocol.messages import (
    CONFIRM,
    JOIN,
    KEYS,
    TRAIN,
    UNMASK,
    JoinReply,
    KeysRequest,
    TrainReply,
    TrainRequest,
    refused,
)
from fedblocks.protocol.transport.records import bytes_array
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import Plan, SimulationSettings


@pytest.fixture(scope="module")
def prepared(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run before its first round, of which each test has a copy."""
    return prepare(small, tmp_path_factory.mktemp("prepared") / "run")


@pytest.fixture
def coordinator(prepared: RunFolder, tmp_path: Path) -> Coordinator:
    return Coordinator(RunFolder(Path(shutil.copytree(prepared.path, tmp_path / "run"))))


def rewrite_policy(run: RunFolder, company: int, line: str) -> None:
    """Replace one line of a company's policy."""
    path = run.companies / f"company-{company}" / "policy.toml"
    key = line.split("=")[0].strip()
    kept = [old for old in path.read_text().splitlines() if not old.startswith(key)]
    path.write_text("\n".join([line, *kept]))  # before the first table


def test_a_faithful_round_trains_charges_once_and_masks(coordinator: Coordinator) -> None:
    request = coordinator.train_request(coordinator.session())
    reply = TrainReply.from_record(coordinator.ask(1, TRAIN, request.to_record()))
    assert coordinator.charges() == 1
    assert len(reply.masked) == pytest.approx(2.75 * coordinator.session().length, rel=0.01)
    counts = np.bincount(reply.masked, minlength=256)
    assert counts.max() < 1.6 * counts.mean()  # masked values look uniform, an update's high bytes do not


def test_a_company_without_examples_answers_as_any_other(coordinator: Coordinator) -> None:
    """Would catch a refusal that tells that it holds none, which no plan tells of anyone."""
    path = coordinator.run.companies / "company-0" / "data.npz"
    Examples.load(path)[:0].save(path)
    request = coordinator.train_request(coordinator.session())
    reply = TrainReply.from_record(coordinator.ask(1, TRAIN, request.to_record()))
    assert coordinator.charges() == 1
    counts = np.bincount(reply.masked, minlength=256)
    assert counts.max() < 1.6 * counts.mean()


@pytest.mark.parametrize(
    ("change", "policy"),
    [
        ({"noise_multiplier": 0.0}, ""),
        ({"delta": 1e-3}, ""),
        ({}, "minimum_cohort = 4"),
        ({}, "epsilon_ceiling = 0.5"),
        ({"noise_multiplier": 0.5}, ""),
    ],
)
def test_a_plan_against_the_companys_rules_is_refused_at_join_and_costs_nothing(
    coordinator: Coordinator, change: dict[str, Any], policy: str
) -> None:
    """Would catch a client that lets the coordinator choose ceiling, delta, cohort or noise."""
    if policy:
        rewrite_policy(coordinator.run, 0, policy)
    reply = coordinator.join(coordinator.plan.model_copy(update=change))[1]
    assert refused(reply) == "privacy"
    assert coordinator.charges() == 0


def altered_model(c: Coordinator, r: TrainRequest) -> TrainRequest:
    state = {name: value + 1e-3 for name, value in r.states[0].items()}
    return replace(r, states={0: state})


def altered_advert(c: Coordinator, r: TrainRequest) -> TrainRequest:
    victim = r.adverts["company-1"]
    return replace(r, adverts=r.adverts | {"company-1": replace(victim, public=victim.public[::-1])})


def few_adverts(c: Coordinator, r: TrainRequest) -> TrainRequest:
    return replace(r, adverts={k: v for k, v in r.adverts.items() if k in ("company-0", "company-1")})


def other_block(c: Coordinator, r: TrainRequest) -> TrainRequest:
    return replace(r, block=1, states={1: c.model.blocks[1]})


def foreign_tensor(c: Coordinator, r: TrainRequest) -> TrainRequest:
    return replace(r, states={0: r.states[0] | {"head.weight": torch.zeros(10, 16)}})


def more_blocks(c: Coordinator, r: TrainRequest) -> TrainRequest:
    return replace(r, block=1, states={0: c.model.blocks[0], 1: c.model.blocks[1]})


@pytest.mark.parametrize(
    "bend",
    [altered_model, altered_advert, few_adverts, other_block, foreign_tensor, more_blocks],
    ids=lambda f: f.__name__,
)
def test_a_bent_training_request_is_refused_before_anything_is_charged(
    coordinator: Coordinator, bend: Callable[[Coordinator, TrainRequest], TrainRequest]
) -> None:
    request = bend(coordinator, coordinator.train_request(coordinator.session()))
    reply = coordinator.ask(1, TRAIN, request.to_record())
    assert refused(reply) in {"wrong_session", "bad_signature", "small_cohort", "too_few"}
    assert coordinator.charges() == 0


def test_training_twice_in_one_session_is_refused_and_charged_once(coordinator: Coordinator) -> None:
    request = coordinator.train_request(coordinator.session()).to_record()
    assert refused(coordinator.ask(1, TRAIN, request)) is None
    assert refused(coordinator.ask(1, TRAIN, request)) == "wrong_phase"
    assert coordinator.charges() == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "another"},
        {"settings_digest": bytes(32)},
        {"cohort": ("company-0", "company-1"), "threshold": 2},
        {"threshold": 3},
        {"cohort": ("company-1", "company-2", "company-3"), "threshold": 3},
    ],
)
def test_a_session_with_other_settings_or_a_small_cohort_is_refused(
    coordinator: Coordinator, changes: dict[str, Any]
) -> None:
    reply = coordinator.keys(coordinator.session(**changes))[1]
    codes = {"bad_session", "small_cohort", "low_threshold", "not_in_cohort"}
    assert refused(reply) in codes


def test_one_set_is_confirmed_and_shares_are_answered_once(coordinator: Coordinator) -> None:
    session = coordinator.session()
    coordinator.trained(session)
    digest_, everyone = session.digest(), session.cohort
    assert refused(coordinator.unmask(1, digest_, {})) == "wrong_phase"
    assert refused(coordinator.confirm(1, bytes(32), everyone)) == "wrong_session"
    assert refused(coordinator.confirm(1, digest_, everyone[1:])) == "bad_survivors"
    assert refused(coordinator.confirm(1, digest_, everyone[:3])) == "too_few"
    signatures = coordinator.signatures(session, dict.fromkeys(NODES, everyone))
    assert refused(coordinator.confirm(1, digest_, everyone[:4])) == "second_set"
    assert refused(coordinator.unmask(1, bytes(32), signatures)) == "wrong_session"
    few = {name: signatures[name] for name in everyone[:3]}
    assert refused(coordinator.unmask(1, digest_, few)) == "too_few"
    assert refused(coordinator.unmask(1, digest_, few | {"company-4": bytes(64)})) == "bad_signature"
    assert refused(coordinator.unmask(1, digest_, signatures)) is None
    assert refused(coordinator.unmask(1, digest_, signatures)) == "wrong_phase"


def test_identity_and_roster_come_from_the_companys_own_files_alone(coordinator: Coordinator) -> None:
    """Would catch a key that may be read by others, an identity the roster does not know, or none at all."""
    home = coordinator.run.companies / "company-0"
    key = home / "identity.key"
    key.chmod(0o640)
    assert refused(coordinator.join()[1]) == "privacy"
    key.chmod(0o600)
    assert refused(coordinator.join()[1]) is None
    shutil.copy(coordinator.run.companies / "company-1" / "identity.key", key)
    assert refused(coordinator.join()[1]) == "privacy"
    key.write_text("11")
    assert refused(coordinator.join()[1]) == "privacy"
    key.unlink()
    assert refused(coordinator.join()[1]) == "privacy"
    (home / "roster.toml").write_text('[companies]\n"company-0" = "xy"\n')
    with pytest.raises(InputError, match="hexadecimal"):
        load_roster(home / "roster.toml")


def test_the_identity_command_makes_one_key_and_keeps_it(tmp_path: Path) -> None:
    def identity(*words: object) -> Result:
        return CliRunner().invoke(cli, ["identity", *map(str, words)])

    first, again = (json.loads(identity(tmp_path, "--json").stdout) for _ in range(2))
    assert (first["made"], again["made"]) == (True, False)
    assert first["public_key"] == again["public_key"] == identity(tmp_path).stdout.strip()
    save_roster(tmp_path / "roster.toml", {"acme": bytes.fromhex(first["public_key"])})
    assert load_member(tmp_path, "acme").name == "acme"
    assert stat.S_IMODE((tmp_path / "identity.key").stat().st_mode) == 0o600
    assert "no such folder" in str(identity(tmp_path / "nowhere").exception)


def test_every_companys_key_file_is_its_owners_alone(coordinator: Coordinator) -> None:
    homes = sorted(coordinator.run.companies.iterdir())
    assert {stat.S_IMODE((home / "identity.key").stat().st_mode) for home in homes} == {0o600}
    rosters = {(home / "roster.toml").read_text() for home in homes}
    assert rosters == {coordinator.run.roster_file.read_text()}
    assert len(coordinator.run.roster().members) == 5


def test_a_channel_key_that_its_owner_has_not_signed_is_refused(coordinator: Coordinator) -> None:
    session = coordinator.session()
    channels = coordinator.channels()
    forged = replace(channels["company-1"], public=ChannelKeys.generate().public)
    request = KeysRequest(session, channels | {"company-1": forged})
    assert refused(coordinator.ask(1, KEYS, request.to_record())) == "bad_signature"


def test_a_company_that_is_not_on_the_roster_cannot_be_smuggled_into_a_cohort(
    coordinator: Coordinator,
) -> None:
    session = coordinator.session(cohort=("company-0", "fake-1", "fake-2"), threshold=3)
    assert refused(coordinator.keys(session)[1]) == "not_in_roster"


def test_phases_out_of_order_are_refused(coordinator: Coordinator) -> None:
    request = coordinator.train_request(coordinator.session())
    fresh = Coordinator(coordinator.run)
    assert refused(fresh.ask(1, TRAIN, request.to_record())) == "wrong_phase"
    empty = KeysRequest(coordinator.session(), {}).to_record()
    assert refused(fresh.ask(1, KEYS, empty)) == "wrong_phase"


def test_the_text_of_an_error_stays_in_the_companys_log(coordinator: Coordinator) -> None:
    """Would catch Flower's default, which sends an exception's text, and with it data, to the coordinator."""
    request = coordinator.train_request(coordinator.session())
    secret = "patient 4711"
    (coordinator.run.companies / "company-0" / "data.npz").write_text(secret)
    reply = coordinator.ask(1, TRAIN, request.to_record())
    assert refused(reply) == "no_data"
    assert list(reply.config_records["message"]) == ["refused"]
    log = (coordinator.run.companies / "company-0" / "company.log").read_text()
    assert "data.npz: not a whole file of examples" in log
    assert secret not in log


@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({"message": ConfigRecord({"plan": 3})}),
        RecordDict({"message": ConfigRecord({"plan": "{}"})}),
        RecordDict(
            {"message": ConfigRecord({"session": b"x" * 9999, "companies": ["a"], "channels": [b""]})}
        ),
        RecordDict({"message": ConfigRecord({"block": True, "companies": [1.0], "adverts": [b"x"]})}),
        RecordDict({"message": ConfigRecord({"survivors": b"\xff" * 40})}),
        RecordDict({"message": ConfigRecord({"confirmations": b"\xff" * 40})}),
    ],
)
@pytest.mark.parametrize("phase", [JOIN, KEYS, TRAIN, CONFIRM, UNMASK])
def test_junk_is_answered_with_a_code(coordinator_once: Coordinator, phase: str, record: RecordDict) -> None:
    assert refused(coordinator_once.ask(1, phase, record)) in {"malformed", "bad_input", "wrong_phase"}


@pytest.mark.parametrize("kind", ["query.nothing", "train", "evaluate.block", "system", "get_parameters"])
def test_a_message_that_nobody_handles_is_answered_with_a_code(
    coordinator_once: Coordinator, kind: str
) -> None:
    """Would catch Flower's own answer, an exception's text."""
    assert refused(coordinator_once.ask(1, kind, RecordDict())) == "unknown_message"


@pytest.fixture(scope="module")
def coordinator_once(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> Coordinator:
    return Coordinator(prepare(small, tmp_path_factory.mktemp("once") / "run"))


def test_without_a_seed_every_release_is_new(coordinator: Coordinator) -> None:
    """Would catch deployed noise that repeats: identity and bits must differ from call to call."""
    home = coordinator.run.companies / "company-0"
    policy = load_policy(home / "policy.toml")
    seeded, deployed = (
        Company(home, policy),
        Company(home, policy.model_copy(update={"simulation_seed": None})),
    )

    def draw(company: Company) -> tuple[str, bytes]:
        identity, randomness = company.randomness(1, "block-0")
        return identity, randomness.bytes(16)

    assert draw(seeded) == draw(seeded)
    first, second = draw(deployed), draw(deployed)
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_a_malformed_masked_vector_is_refused_by_the_coordinator() -> None:
    """None, another name, one too many. Any bytes are a vector of bytes; its length the aggregation checks."""
    masked = bytes_array(b"12")
    assert TrainReply.from_record(
        RecordDict({"arrays": ArrayRecord({"masked": masked})})
    ).masked.tolist() == [49, 50]
    for record in (
        RecordDict(),
        RecordDict({"message": ConfigRecord({"masked": b"12"})}),
        RecordDict({"arrays": ConfigRecord({"masked": b"12"})}),
        RecordDict({"arrays": ArrayRecord({"other": masked})}),
        RecordDict({"arrays": ArrayRecord({"masked": masked, "other": masked})}),
    ):
        with pytest.raises(ProtocolError, match="malformed"):
            TrainReply.from_record(record)


def test_messages_hold_what_was_put_in() -> None:
    reply = JoinReply("company-0", ChannelKey(bytes(32), bytes(64)))
    assert JoinReply.from_record(reply.to_record()) == reply


@pytest.mark.parametrize("changes", [{"length": 5}, {"bits": 20}, {"round": 99}, {"round": 0}])
def test_a_session_that_does_not_fit_the_plan_costs_nothing_however_often_it_is_sent(
    coordinator: Coordinator, changes: dict[str, Any]
) -> None:
    """Would catch a coordinator that burns a company's budget with rounds that can never end."""
    if "length" in changes:
        request = coordinator.train_request(coordinator.session(**changes)).to_record()
        assert {refused(coordinator.ask(1, TRAIN, request)) for _ in range(3)} == {"wrong_session"}
    else:
        assert refused(coordinator.keys(coordinator.session(**changes))[1]) == "bad_session"
    assert coordinator.charges() == 0


@pytest.mark.parametrize("bend", ["foreign", "missing", "nan"])
def test_a_block_state_that_is_not_exactly_the_block_is_refused_even_with_a_matching_digest(
    coordinator: Coordinator, bend: str
) -> None:
    """Would catch shared parts replaced round by round, or values chosen to make training fail."""
    state = dict(coordinator.model.blocks[0])
    first = sorted(state)[0]
    if bend == "foreign":
        state["head.weight"] = coordinator.model.shared["table"] * 7
    elif bend == "missing":
        del state[first]
    else:
        state[first] = torch.full_like(state[first], float("nan"))
    request = coordinator.train_request(coordinator.session(model_digest=digest(state)))
    assert refused(coordinator.ask(1, TRAIN, replace(request, states={0: state}).to_record())) == "bad_run"
    assert coordinator.charges() == 0


def test_a_plan_for_other_data_is_refused_alike_whatever_the_data_hold(coordinator: Coordinator) -> None:
    """Would catch an answer that tells which labels a company holds."""
    fewer = coordinator.plan.model.model_copy(update={"classes": 9})
    replies = coordinator.join(coordinator.plan.model_copy(update={"model": fewer}))
    assert {refused(reply) for reply in replies.values()} == {"privacy"}


def test_the_whole_plan_is_held_against_the_ceiling_not_one_round(coordinator: Coordinator) -> None:
    longer = coordinator.plan.training.model_copy(update={"rounds": 5})
    plan = coordinator.plan.model_copy(update={"training": longer})
    assert refused(coordinator.join(plan)[1]) == "privacy"


def test_a_run_goes_on_under_the_terms_that_its_first_release_pinned(coordinator: Coordinator) -> None:
    """Would catch a coordinator that looks at a round, and goes on under the same name with other noise or longer."""
    request = coordinator.train_request(coordinator.session())
    assert refused(coordinator.ask(1, TRAIN, request.to_record())) is None
    plan = coordinator.plan
    shorter = plan.training.model_copy(update={"rounds": 2})
    changes = ({"noise_multiplier": 2 * plan.noise_multiplier}, {"training": shorter})
    for change in changes:
        replies = coordinator.join(plan.model_copy(update=change))
        assert refused(replies[1]) == "privacy"
        assert refused(replies[2]) is None  # nothing was charged there yet
    assert refused(coordinator.join()[1]) is None
    assert coordinator.charges() == 1


def test_a_run_that_was_begun_is_paid_whole_before_another_may_be(coordinator: Coordinator) -> None:
    """Would catch a coordinator that stops a run after a look and spends what is left on a plan of its choice."""
    request = coordinator.train_request(coordinator.session())
    assert refused(coordinator.ask(1, TRAIN, request.to_record())) is None
    one = coordinator.plan.training.model_copy(update={"rounds": 1})
    another = coordinator.plan.model_copy(update={"run": "another", "training": one})
    replies = coordinator.join(another)
    assert refused(replies[1]) == "privacy"
    assert refused(replies[2]) is None


def test_the_policy_chooses_the_composition_once(coordinator: Coordinator) -> None:
    rewrite_policy(coordinator.run, 0, 'composition = "renyi"')
    rewrite_policy(coordinator.run, 0, "epsilon_ceiling = 12.0")
    home = coordinator.run.companies / "company-0"
    (home / "ledger.sqlite").unlink()
    Company(home, load_policy(home / "policy.toml")).create_ledger()
    request = coordinator.train_request(coordinator.session())
    assert refused(coordinator.ask(1, TRAIN, request.to_record())) is None
    with Company(home, load_policy(home / "policy.toml")).ledger() as ledger:
        assert "Renyi filter" in ledger.spent().composition
    rewrite_policy(coordinator.run, 0, 'composition = "runs"')
    assert refused(coordinator.join()[1]) == "privacy"


def test_another_plan_never_meets_the_same_noise(coordinator: Coordinator) -> None:
    """Would catch noise that a second, differently scaled request could cancel."""
    session, data = coordinator.session(), Company.data
    home = coordinator.run.companies / "company-0"
    company = Company(home, load_policy(home / "policy.toml"))

    def noise(plan: Plan) -> bytes:
        labels = release_labels(plan, session, b"block", b"shared", data(company).digest, company.policy)
        return company.randomness(*labels)[1].bytes(16)

    plan = coordinator.plan
    seen = {noise(plan), noise(plan.model_copy(update={"max_grad_norm": 2.0}))}
    seen.add(noise(plan.model_copy(update={"company_clip": 9.0})))
    assert len(seen) == 3
    assert noise(plan) in seen


def test_a_deployed_company_refuses_a_seed(coordinator: Coordinator) -> None:
    home = coordinator.run.companies / "company-0"
    context = Context(
        run_id=1,
        node_id=1,
        node_config={"company-home": str(home)},
        state=RecordDict(),
        run_config={},
    )
    with pytest.raises(PrivacyError, match="simulation_seed"):
        Company.of(context)


def test_a_log_that_cannot_be_written_lets_no_text_out(coordinator: Coordinator) -> None:
    (coordinator.run.companies / "company-0" / "company.log").mkdir()
    assert refused(coordinator.ask(1, TRAIN, RecordDict())) == "privacy"
