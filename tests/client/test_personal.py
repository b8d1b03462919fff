"""A company's own parts: what leaves it does not depend on them, they help it, and the common model stays."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save
from support.private_training import setting

from fedblocks.blocks import Denoiser, ModelCard, build_model, digest, metric_of, sample_chain, split
from fedblocks.blocks.examples import Examples
from fedblocks.blocks.families import family
from fedblocks.blocks.model_file import load_model, save_model
from fedblocks.blocks.pretrained.denoiser import PretrainedDenoiser
from fedblocks.blocks.pretrained.personal import add_personal, lay_over, lift, personal_state, train_personal
from fedblocks.blocks.settings import NoiseSettings
from fedblocks.client.company import Company
from fedblocks.client.model_folders import MODELS, PUBLIC_FILE
from fedblocks.client.models import kept_models
from fedblocks.client.personal import PERSONAL_FILE, lay_over_file, personalise_kept
from fedblocks.client.policy import Policy
from fedblocks.client.training import train_block
from fedblocks.errors import InputError
from fedblocks.privacy.randomness import Randomness

PARTS = [
    ("pretrained-text-classifier", "head"),
    ("pretrained-text-classifier", "adapter"),
    ("pretrained-image-classifier", "head"),
    ("pretrained-decoder", "adapter"),
]
EACH = pytest.mark.parametrize(("name", "personal"), PARTS)


def made(name: str, personal: str, **more: Any) -> PretrainedDenoiser:
    chosen = family(name)
    told = chosen.small_settings(2, 2).model_dump() | {
        "personal": personal,
        "personal_steps": 40,
        "personal_learning_rate": 0.01,
        **more,
    }
    torch.manual_seed(1)
    model = build_model(chosen.settings.model_validate(told), NoiseSettings()).eval()
    assert isinstance(model, PretrainedDenoiser)
    return model


def examples(model: Denoiser, count: int = 48) -> Examples:
    """Of which a model can learn something: the class, or each token, follows from the input."""
    kind, generator = model.settings.kind, torch.Generator().manual_seed(4)  # type: ignore[union-attr]
    if kind.input_classes is None:
        inputs = torch.rand(count, *kind.inputs, generator=generator)
        return Examples(inputs, (inputs.mean(dim=(1, 2, 3)) > 0.5).long())
    inputs = torch.randint(1, 6, (count, *kind.inputs), generator=generator)
    return Examples(inputs, inputs if kind.targets else inputs[:, 0] % 3)


def loss(model: Denoiser, data: Examples) -> float:
    """Of the model's own prediction."""
    found = sample_chain(model, data.inputs, data.targets, torch.Generator().manual_seed(0))[-1]
    return float(model.loss(found, data.targets).mean())


@EACH
def test_they_help_the_company_and_the_common_model_stays(name: str, personal: str) -> None:
    """Would catch parts that nothing reads, a training that moves common tensors, and parts in a state or digest."""
    model = made(name, personal)
    data, state = examples(model), split(model)
    everything = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    common = loss(model, data)
    add_personal(model)
    assert loss(model, data) == pytest.approx(common, abs=1e-6)
    train_personal(model, data, torch.Generator().manual_seed(0))
    own = loss(model, data)
    assert own < common - 1e-3
    during = split(model)
    assert digest(during.shared, *during.blocks) == digest(state.shared, *state.blocks)
    last = len(model.blocks) - 1
    groups = model.groups(last, interface=True)
    assert {key for key, group in groups.items() if group == "personal"} == {
        f"blocks.{last}.personal.{key}" for key in personal_state(model)
    }
    kept = personal_state(model)
    lift(model)
    assert loss(model, data) == common
    after = model.state_dict()
    assert after.keys() == everything.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in everything.items())
    for _ in range(2):  # laid over twice, it is not added twice
        lay_over(model, kept, "personal", "file")
        assert loss(model, data) == own


@EACH
def test_a_strong_pull_keeps_them_at_the_common_model(name: str, personal: str) -> None:
    """In norm, over weaker and stronger ones; would catch a pull towards zero or of another sign."""
    moved = []
    for pull in (0.0, 1.0, 1e4):
        model = made(name, personal, personal_pull=pull)
        add_personal(model)
        begun = personal_state(model)
        train_personal(model, examples(model), torch.Generator().manual_seed(0))
        found = personal_state(model)
        moved.append(sum(float((found[key] - begun[key]).square().sum()) for key in begun) ** 0.5)
    assert moved[0] > moved[1] > moved[2]
    assert moved[2] < 0.2 * moved[0]


@EACH
def test_what_leaves_has_the_same_bits_with_and_without_them(name: str, personal: str) -> None:
    """A round's update of the block that has them; would catch a gradient at a personal readout, or through
    personal adapters, and more parameters in an update."""
    updates = []
    for with_parts in (False, True):
        given = setting("vit")
        model = made(name, personal)
        plan = given.plan.model_copy(update={"model": model.settings})
        data = examples(model)
        if with_parts:
            add_personal(model)
            train_personal(model, data, torch.Generator().manual_seed(0))
        policy = given.policy.model_copy(update={"data": model.settings.kind})
        randomness = Randomness.from_seed(0, "round")
        updates.append(train_block(model, 1, data, plan, 5, randomness, policy))
    assert np.array_equal(*updates)


def at_home(home: Path, personal: str) -> tuple[Company, ModelCard]:
    """A company with examples and the model of a run, as it comes after the last round."""
    model = made("pretrained-text-classifier", personal)
    data = examples(model)
    company = Company(home, Policy(company="acme", epsilon_ceiling=1, delta=1e-5, data=model.settings.kind))
    (home / MODELS).mkdir(parents=True, mode=0o700)
    data[torch.arange(32)].save(home / "data.npz")
    data[torch.arange(32, 48)].save(home / "held_out.npz")
    state = split(model)
    card = ModelCard(
        version="0", run="run", round=1, rounds=1, plan="", digest=digest(state.shared, *state.blocks).hex(),
        guarantee="", model=model.settings, noise=NoiseSettings(), metric=metric_of(model.settings).name,
    )  # fmt: skip
    save_model(state, card, home / MODELS / "run")
    (home / MODELS / "run" / PUBLIC_FILE).write_bytes(save(dict(state.blocks[1])))
    return company, card


def test_at_a_company_they_are_kept_like_the_data_and_judged(tmp_path: Path) -> None:
    """Would catch a file that others can read, figures of an older file, and a model that others get with the parts
    in it."""
    company, card = at_home(tmp_path / "acme", "head")
    (before,) = kept_models(company)
    assert (before.problem, before.personal) == ("", None)
    model_file = (tmp_path / "acme" / MODELS / "run" / "model.safetensors").read_bytes()
    found, path, effect = personalise_kept(company, "run")
    assert found == card
    assert path == tmp_path / "acme" / MODELS / "run" / PERSONAL_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (after,) = kept_models(company)
    assert (after.final, after.personal) == (effect.common, effect.personal)
    assert after.final == before.final
    assert effect.examples == 16
    assert (path.parent / "model.safetensors").read_bytes() == model_file
    for run in ("other", "..", "../models/run"):
        with pytest.raises(InputError, match="no model of this run"):
            personalise_kept(company, run)


def test_parts_of_another_model_are_refused(tmp_path: Path) -> None:
    """By the model's digest, and by what the plan says; would catch a readout laid over a later round."""
    company, card = at_home(tmp_path / "acme", "head")
    _, path, _ = personalise_kept(company, "run")
    model, _ = load_model(path.parent)
    lay_over_file(model, card, path)
    for other, rule in (
        (card.model_copy(update={"digest": "00"}), "trained on another model"),
        (card, "not of this model"),
    ):
        network = made("pretrained-text-classifier", "adapter") if other is card else model
        with pytest.raises(InputError, match=rule):
            lay_over_file(network, other, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="cannot be read"):
        lay_over_file(model, card, path)
    plain, _ = at_home(tmp_path / "plain", "nothing")
    with pytest.raises(InputError, match=r"model\.personal='?nothing"):
        personalise_kept(plain, "run")


def test_a_decoder_has_no_head_of_its_own() -> None:
    with pytest.raises(ValidationError, match="the original head, which stays as it is"):
        made("pretrained-decoder", "head")
