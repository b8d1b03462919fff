"""Plans of pretrained models as a hostile coordinator may write them, and what a company makes of them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from support.coordinating import Coordinator
from support.pretrained_runs import pretrained_run
from support.tiny_models import TINY, save

from fedblocks.blocks import digest
from fedblocks.blocks.build import build_model
from fedblocks.blocks.families import family
from fedblocks.blocks.model_file import ModelCard
from fedblocks.blocks.pretrained import places
from fedblocks.blocks.pretrained.convert import convert
from fedblocks.blocks.pretrained.small import random_model, small_model
from fedblocks.blocks.settings import NoiseSettings
from fedblocks.blocks.size import parameters_of
from fedblocks.client import delivery, readiness
from fedblocks.client.company import Company
from fedblocks.client.delivery import checked_card
from fedblocks.client.doctor.findings import Findings
from fedblocks.client.doctor.plan import check_plan
from fedblocks.client.policy import Policy, load_policy
from fedblocks.client.rehearsal import rehearse
from fedblocks.errors import InputError, PolicyRefusal, ProtocolError
from fedblocks.experiments.simulation.preparation import make_plan, prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.mechanisms.skellam import SkellamNoise, default_scale
from fedblocks.protocol.messages import (
    DELIVER,
    DeliverRequest,
    EvaluateRequest,
    JoinRequest,
    TrainRequest,
    refused,
)
from fedblocks.protocol.release import block_size, blocks_read, largest_block, planned_size
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import Plan, SimulationSettings, TrainingSettings, validated, validated_json


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A prepared run of two blocks, of which rounds train the second alone."""
    folder = tmp_path_factory.mktemp("encoder")
    parts: dict[str, Any] = {"companies": {"count": 5}, "training": {"blocks": [1]}}
    return prepare(pretrained_run("encoder", folder, **parts), folder / "run")


@pytest.fixture
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A converted folder that this process does not know, of a model that it does."""
    monkeypatch.setenv(places.VARIABLE, os.environ.get(places.VARIABLE, ""))
    return Path(shutil.copytree(small_model("encoder", 2, 2), tmp_path / "strange"))


def told(plan: Plan, **model: Any) -> str:
    """The plan as it travels, other values in its model."""
    raw = json.loads(plan.model_dump_json())
    raw["model"] = {k: v for k, v in (raw["model"] | model).items() if v is not None}
    return json.dumps(raw)


def test_a_plan_that_names_a_folder_is_refused_and_nobody_looks_there(
    encoder: RunFolder, strange: Path
) -> None:
    """Would catch a coordinator that makes companies open paths of its choice: on a network drive, a pipe, a device.
    The folder is one that would be taken from a company's own settings file."""
    plan = encoder.plan()
    for given in (
        str(strange),
        "//coordinator/share",
        plan.model.model_dump()["pretrained"].upper(),
        ["x"],
        7,
    ):
        text = told(plan, pretrained=given)
        with pytest.raises(InputError, match=r"model\.pretrained"):
            validated_json(Plan, text)
        record = JoinRequest(plan, Checkpoint.load(encoder.checkpoints, 0).model.shared).to_record()
        altered = _replaced(record, plan.model_dump_json(), text)
        with pytest.raises(InputError, match=r"model\.pretrained"):
            JoinRequest.from_record(altered)
    assert str(strange) not in os.environ[places.VARIABLE]


def _replaced(record: RecordDict, old: str, new: str) -> RecordDict:
    """The record with another plan in it."""
    for config in record.config_records.values():
        for name, value in config.items():
            if value == old:
                config[name] = new
                return record
    raise AssertionError("no plan in the record")


def test_a_models_card_that_names_a_folder_is_refused(encoder: RunFolder, strange: Path) -> None:
    """As of a plan; cards come with the final model, and with models that people hand on."""
    plan = encoder.plan()
    card = {
        "version": "0", "run": plan.run, "round": 2, "rounds": 2, "plan": plan.digest().hex(), "digest": "",
        "guarantee": "", "noise": plan.noise.model_dump(mode="json"), "metric": "accuracy",
        "model": json.loads(told(plan))["model"],
    }  # fmt: skip
    assert checked_card(json.dumps(card), plan).model == plan.model
    card["model"]["pretrained"] = str(strange)  # type: ignore[index]
    with pytest.raises(ProtocolError, match="not the card"):
        checked_card(json.dumps(card), plan)
    with pytest.raises(ValueError, match="digest of a converted model"):
        ModelCard.model_validate_json(json.dumps(card))
    assert str(strange) not in os.environ[places.VARIABLE]


@pytest.mark.parametrize(
    ("own", "other"),
    [("encoder", "pretrained-decoder"), ("decoder", "pretrained-text-classifier")],
)
def test_another_family_over_an_accepted_model_is_refused(own: str, other: str) -> None:
    """Would catch sizes that are all told, and so compared with the card, but for what kind of model it is."""
    folder = small_model(own, 2, 2)  # type: ignore[arg-type]
    accepted = places.register(folder)
    settings = family(other).small_settings(2, 2).model_dump() | {"pretrained": accepted}
    model = family(other).settings.model_validate(settings)
    policy = Policy(company="acme", epsilon_ceiling=1, delta=1e-5, data=model.kind, pretrained=(str(folder),))
    with pytest.raises(InputError, match=f"of kind {own}"):
        policy._check_pretrained(model)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"of kind {own}"):
        build_model(model, NoiseSettings())


@pytest.mark.parametrize(
    "changes",
    [
        {"pretrained": "0" * 64}, {"hidden_size": 24}, {"layers": 4}, {"blocks": 1}, {"heads": 3},
        {"vocabulary": 25}, {"longest": 4096}, {"pad": 3}, {"lora_targets": ["no_such"]},
        {"lora_targets": ["base"]}, {"lora_targets": [""]}, {"lora_targets": ["query"] * 65},
        {"lora_rank": 1 << 20}, {"sequence_length": 17}, {"features": "raw"}, {"heads": None, "pretrained": "1" * 64},
    ],
)  # fmt: skip
def test_a_plan_that_differs_from_the_accepted_model_is_refused(
    encoder: RunFolder, changes: dict[str, Any]
) -> None:
    """Would catch sizes that are taken from the plan instead of the card, and adapters of what is no linear map."""
    policy = load_policy(encoder.companies / "company-0" / "policy.toml")
    with pytest.raises((InputError, PolicyRefusal)):
        policy.check(validated_json(Plan, told(encoder.plan(), **changes)))


def test_a_large_rank_takes_no_memory_before_it_is_refused(encoder: RunFolder) -> None:
    """Would catch adapters that are made to be counted; they would be many times the model's size."""
    model = encoder.plan().model.model_copy(update={"lora_rank": 256, "lora_targets": ("dense",)})
    with torch.device("meta"):
        built = build_model(model, NoiseSettings())
    adapters = [p for name, p in built.named_parameters() if name.endswith(("A.weight", "B.weight"))]
    assert adapters
    assert all(p.is_meta for p in adapters)
    assert parameters_of(model) > 2 * 256 * 12 * len(adapters) // 2


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> SimulationSettings:
    """Of a decoder that denoises texts of 128 tokens, with one noise draw."""
    sizes = {
        "layers": 2,
        "blocks": 2,
        "hidden_size": 32,
        "heads": 2,
        "intermediate_size": 64,
        "positions": 128,
    }
    model = {"pretrained": str(random_model("decoder", **sizes)), "sequence_length": 128}  # type: ignore[arg-type]
    return pretrained_run("decoder", tmp_path_factory.mktemp("long"), objective="denoise", model=model)


def planned(settings: SimulationSettings) -> Plan:
    return make_plan(settings, build_model(settings.model, settings.noise), "run")


def test_more_noise_draws_than_fit_into_a_pass_are_refused(long: SimulationSettings) -> None:
    """The attack: a plan by which every company's machine runs out of memory as soon as it tries. Also would catch
    settings that are prepared and paid for before somebody notices."""
    for part in ("training", "pretraining"):
        raw = long.model_dump()
        raw[part]["noise_draws"] = 63
        validated(SimulationSettings, raw)
        raw[part]["noise_draws"] = 64
        with pytest.raises(InputError, match=rf"{part}\.noise_draws=64: .*sequence_length=128.*8,256 tokens"):
            validated(SimulationSettings, raw)
    raw = json.loads(planned(long).model_dump_json())
    raw["training"]["noise_draws"] = 64
    with pytest.raises(InputError, match=r"training\.noise_draws=64"):
        validated_json(Plan, json.dumps(raw))
    raw["model"]["objective"] = "task"
    validated_json(Plan, json.dumps(raw))


def test_a_plan_of_which_one_example_takes_too_much_memory_is_refused_before_the_charge(
    long: SimulationSettings,
) -> None:
    """Would catch a pass of a single example that is made whatever the company allows."""
    raw = long.model_dump()
    raw["training"]["noise_draws"] = 24
    many = planned(validated(SimulationSettings, raw))
    policy = Policy(company="acme", epsilon_ceiling=1, delta=1e-3, data=long.model.kind, memory_mb=2)
    with pytest.raises(PolicyRefusal, match=r"noise_draws=24.*memory_mb=2 ") as caught:
        rehearse(many, 0, 3, policy)
    assert caught.value.rule == "memory_mb"
    rehearse(planned(long), 0, 3, policy.model_copy(update={"memory_mb": 64}))


def test_what_the_check_of_a_home_says_of_a_missing_model(
    encoder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch an examination that ends at the first thing that needs the model."""
    home = encoder.companies / "company-0"
    policy = load_policy(home / "policy.toml").model_copy(update={"pretrained": ()})
    monkeypatch.setenv(places.VARIABLE, "")
    parameters_of.cache_clear()  # as in a process that begins
    findings = Findings()
    check_plan(Company(home, policy), encoder.plan(), None, None, None, findings)
    refusals = [each for each in findings.found if each.name == "refused"]
    assert [each.where for each in refusals] == ["policy.toml, pretrained"]
    assert "names folders in `pretrained`" in refusals[0].what


def test_a_block_that_a_run_does_not_train_is_neither_summed_nor_replaced(
    encoder: RunFolder, tmp_path: Path
) -> None:
    """With training.blocks = [1]: would catch a session for block 0, which the account has not, and a final model
    with another block 0."""
    c = Coordinator(RunFolder(Path(shutil.copytree(encoder.path, tmp_path / "run"))))
    replies = c.keys(c.session(label="block-0"))
    assert {refused(reply) for reply in replies.values()} == {"bad_session"}
    assert c.charges() == 0
    joined = JoinRequest(c.plan, c.model.shared).digest()
    model = c.plan.model
    moved = {name: tensor + 1 for name, tensor in c.model.blocks[0].items()}
    whole = dict(c.model.shared) | moved | c.model.blocks[1]
    card = ModelCard(
        version="0", run=c.plan.run, round=2, rounds=2, plan=c.plan.digest().hex(), digest=digest(whole).hex(),
        guarantee="", model=model, noise=c.plan.noise, metric="accuracy",
    )  # fmt: skip
    public = dict(enumerate(c.model.blocks))
    request = DeliverRequest(joined, card.model_dump_json(), 0, 1, public, {0: moved})
    assert refused(c.ask(1, DELIVER, request.to_record())) == "bad_model"


def test_a_mixed_block_is_trained_with_the_blocks_that_the_coordinator_has(tmp_path: Path) -> None:
    """The loss at the end of the model reads the blocks after it: would catch those that a company's process has left
    of an earlier training, or has made up. Two runs of one seed are then the same."""
    settings = pretrained_run("encoder", tmp_path, objective="mixed", trains="bias", training={"rounds": 3})
    plan = prepare(settings, tmp_path / "0").plan()
    assert list(blocks_read(plan, 0)) == [0, 1]
    found = []
    for name in ("1", "2"):
        torch.manual_seed(int(name))
        run = prepare(settings, tmp_path / name)
        simulate(run)
        assert [task["status"] for row in run.metrics() for task in row.get("tasks", ())] == ["done"] * 3
        found.append(digest(*Checkpoint.load(run.checkpoints).model.blocks))
    assert found[0] == found[1]


def test_states_travel_for_the_blocks_after_the_trained_one_too(encoder: RunFolder) -> None:
    states = dict(enumerate(Checkpoint.load(encoder.checkpoints, 0).model.blocks))
    found = TrainRequest.from_record(TrainRequest(0, states, {}).to_record())
    assert (found.block, list(found.states)) == (0, [0, 1])
    assert digest(*found.states.values()) == digest(*states.values())
    with pytest.raises(ProtocolError, match="around the block"):
        TrainRequest.from_record(TrainRequest(2, states, {}).to_record())
    with pytest.raises(ProtocolError, match="around the block"):
        TrainRequest.from_record(TrainRequest(0, {0: states[0], 2: states[1]}, {}).to_record())
    with pytest.raises(ProtocolError, match="from the first"):
        EvaluateRequest.from_record(TrainRequest(0, states, {}).to_record())


@pytest.mark.parametrize("mode", ["local", pytest.param("secure_step", marks=pytest.mark.slow)])
def test_blocks_of_unequal_sizes_are_trained_and_accounted_as_the_largest(mode: str, tmp_path: Path) -> None:
    """An image's last block has no norm of its own: would catch a run in which it is refused, and an account that
    goes by the first block's size."""
    privacy = {"mode": mode, "epsilon": 8.0, "delta": 1e-3}
    run = prepare(pretrained_run("vision", tmp_path, privacy=privacy), tmp_path / "run")
    simulate(run)
    assert [task["status"] for row in run.metrics() for task in row.get("tasks", ())] == ["done"] * 2
    model, plan = build_model(run.plan().model, run.plan().noise), run.plan()
    sizes = [
        sum(model.freeze_all_but(b).get_parameter(n).numel() for n in model.trainable(b, True))
        for b in (0, 1)
    ]
    assert sizes[0] > sizes[1]
    assert planned_size(plan) == sizes[0]


@pytest.mark.parametrize("own", [1, 500, 4_000_000])
def test_a_shorter_vector_is_noised_as_the_one_that_it_is_accounted_as(own: int) -> None:
    """Would catch a smaller block that changes by more than the event says, or has less noise."""
    largest = 5_000_000

    def noise(dimension: int, accounted: int | None) -> SkellamNoise:
        scale = default_scale(accounted or dimension, 1.0)
        return SkellamNoise(
            dimension=dimension, clip=1.0, companies=5, tolerated=1, noise_multiplier=1.0, scale=scale,
            accounted=accounted,
        )  # fmt: skip

    charged, made, alone = noise(largest, None), noise(own, largest), noise(own, None)
    assert (made.l2, made.l1, made.variance_total) == (charged.l2, charged.l1, charged.variance_total)
    assert made.scale == charged.scale
    assert alone.l2 / alone.scale <= made.l2 / made.scale * (1 + 1e-3)
    assert made.limit >= charged.limit
    with pytest.raises(InputError, match="accounted"):
        noise(largest + 1, largest)


def unchanged(c: Coordinator) -> DeliverRequest:
    """The delivery, in one part, of a final model that is the public one."""
    joined = JoinRequest(c.plan, c.model.shared).digest()
    whole = dict(c.model.shared) | c.model.blocks[0] | c.model.blocks[1]
    card = ModelCard(
        version="0", run=c.plan.run, round=2, rounds=2, plan=c.plan.digest().hex(), digest=digest(whole).hex(),
        guarantee="", model=c.plan.model, noise=c.plan.noise, metric="accuracy",
    )  # fmt: skip
    return DeliverRequest(joined, card.model_dump_json(), 0, 1, dict(enumerate(c.model.blocks)), {})


def test_a_disk_needs_room_for_what_is_delivered_alone(
    encoder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a final model that is refused for want of room for the pretrained one, which does not travel."""
    c = Coordinator(RunFolder(Path(shutil.copytree(encoder.path, tmp_path / "run"))))
    c.channels()
    request = unchanged(c).to_record()
    sent = sum(tensor.nbytes for block in c.model.blocks for tensor in block.values())
    everything = build_model(c.plan.model, c.plan.noise).state_dict().values()
    assert 4 * sent < sum(tensor.nbytes for tensor in everything)
    for free, code in ((-1, "no_room"), (0, None)):
        left = SimpleNamespace(free=readiness.LEAST_FREE + 4 * sent + free)
        monkeypatch.setattr(readiness.shutil, "disk_usage", lambda path, left=left: left)
        assert refused(c.ask(1, DELIVER, request)) == code


def test_a_model_that_comes_days_later_is_taken_by_a_process_that_has_seen_no_plan(
    encoder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a delivery that is refused after a restart, as only a plan's check made the model known."""
    c = Coordinator(RunFolder(Path(shutil.copytree(encoder.path, tmp_path / "run"))))
    c.channels()
    request = unchanged(c)
    monkeypatch.setenv(places.VARIABLE, "")
    parameters_of.cache_clear()  # as in a process that begins
    delivery._shapes.cache_clear()
    assert refused(c.ask(1, DELIVER, request.to_record())) is None


def test_the_account_goes_by_the_largest_block_wherever_it_stands(tmp_path: Path) -> None:
    """ModernBERT's first layer has one norm less: would catch an account by the first block's size, and one by a
    block that the run does not train."""
    convert(save(TINY["modernbert"].made(), tmp_path / "checkpoint"), 2, tmp_path / "converted")
    raw = {"pretrained": str(tmp_path / "converted"), "trains": "bias", "sequence_length": 12}
    settings = family("pretrained-text-classifier").settings.model_validate(raw)
    model = build_model(settings, NoiseSettings())
    sizes = [block_size(model, block, TrainingSettings()) for block in (0, 1)]
    assert sizes[0] < sizes[1]
    assert largest_block(model, TrainingSettings()) == sizes[1]
    assert largest_block(model, TrainingSettings(blocks=(0,))) == sizes[0]
