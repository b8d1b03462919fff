"""The whitened readout: features that public data vary alike in, and a head that is linear in them all the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.pretrained_runs import pretrained_run
from torch import Tensor, nn

from fedblocks.blocks import BlockObjective, Denoiser, save_state, split, train
from fedblocks.blocks.pretrained.classifier import PretrainedClassifier
from fedblocks.blocks.pretrained.whitening import Whitening
from fedblocks.blocks.single_block_training import train_single_block
from fedblocks.experiments.simulation.preparation import fresh_model, prepare, read_public, schedule_of
from fedblocks.experiments.simulation.pretraining import job_of
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings


@pytest.fixture
def features() -> Tensor:
    """(500, 6): strongly correlated, one nearly constant."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(500, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    return mixed * torch.tensor([30.0, 1.0, 1.0, 1.0, 1.0, 1e-4]) + 7


def test_it_is_the_inverse_square_root_of_the_ridged_covariance(features: Tensor) -> None:
    """Against NumPy: map (C + r I) map = I. Would catch a Cholesky factor (another rotation), a biased covariance,
    and a ridge of another size."""
    whitening = Whitening(6)
    assert torch.equal(whitening(features), features)
    whitening.measure(features)
    covariance = np.cov(features.double().numpy(), rowvar=False)
    ridged = covariance + 0.1 * np.trace(covariance) / 6 * np.eye(6)
    found = whitening.map.double().numpy()
    np.testing.assert_allclose(found, found.T, atol=1e-7)
    np.testing.assert_allclose(found @ ridged @ found, np.eye(6), atol=1e-5)
    assert whitening(features).mean(dim=0).abs().max() < 1e-4


def test_equal_features_change_nothing_but_the_mean() -> None:
    """As of one public example, repeated. Would catch a division by zero, whose NaN ends a run."""
    whitening = Whitening(3)
    whitening.measure(torch.full((4, 3), 2.0))
    assert torch.equal(whitening(torch.full((1, 3), 3.0)), torch.ones(1, 3))


def test_folded_into_the_head_it_computes_the_same(features: Tensor) -> None:
    whitening, head = Whitening(6), nn.Linear(6, 4)
    whitening.measure(features)
    weight, bias = whitening.folded(head)
    wanted = head(whitening(features))
    assert (
        nn.functional.linear(features.double(), weight.double(), bias.double()) - wanted
    ).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["encoder", "vision"])
def test_each_block_measures_public_data_before_it_is_trained(kind: str, tmp_path: Path) -> None:
    """Together, and block by block in files of their own; would catch a block that measures what another reads, one
    that never does, or again once it is trained, and a map that training moves."""
    settings = whitened(kind, tmp_path)
    public, _ = read_public(settings)
    expected = measured(fresh_model(settings), 0, public.inputs)
    model = fresh_model(settings)
    untouched = norm_of(model, 1).map.clone()
    train(
        model, public.inputs, public.targets, objective=BlockObjective(), schedule=schedule_of(settings),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert torch.equal(norm_of(model, 0).map, expected)
    assert not torch.equal(norm_of(model, 1).map, untouched)
    assert not torch.equal(norm_of(model, 1).map, expected)
    folder = tmp_path / "blocks"
    save_state(split(fresh_model(settings)), folder)
    train_single_block(folder, 0, public.inputs, public.targets, job=job_of(settings))
    stored = load_file(folder / "block-0.safetensors")
    (found,) = (tensor for name, tensor in stored.items() if name.endswith("norm.map"))
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_model_that_public_data_do_not_train_is_measured_all_the_same(tmp_path: Path) -> None:
    settings = whitened("encoder", tmp_path)
    public, _ = read_public(settings)
    model = fresh_model(settings)
    schedule = replace(schedule_of(settings), steps=0)
    generator = torch.Generator().manual_seed(0)
    train(
        model,
        public.inputs,
        public.targets,
        objective=BlockObjective(),
        schedule=schedule,
        generator=generator,
    )
    for b in range(2):
        assert torch.equal(norm_of(model, b).map, measured(fresh_model(settings), b, public.inputs))


@pytest.mark.parametrize("mode", ["local", "secure_step"])
@pytest.mark.parametrize("kind", ["encoder", "vision"])
def test_rounds_leave_it_as_it_is(kind: str, mode: str, tmp_path: Path) -> None:
    """Over the whole protocol. Would catch a map that is part of an update, or that a company has not."""
    run = prepare(whitened(kind, tmp_path, privacy={"mode": mode, "colluders": 1}), tmp_path / "runs")
    before = maps_of(run)
    result = simulate(run)
    assert (result["rounds_done"], result["rounds_failed"], result["refusals"]) == (2, {}, {})
    after = maps_of(run)
    assert len(before) == 2 * 2
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def maps_of(run: RunFolder) -> dict[str, Tensor]:
    """Means and maps in the newest checkpoint, by their names."""
    parts = Checkpoint.load(run.checkpoints).model.blocks
    return {name: tensor for part in parts for name, tensor in part.items() if ".norm." in name}


def whitened(kind: str, folder: Path, **parts: dict[str, object]) -> SimulationSettings:
    settings = pretrained_run(
        kind, folder, pretraining={"schedule": "sequential"}, model={"readout": "whitened"}, **parts
    )
    assert getattr(settings.model, "readout", None) == "whitened"
    return settings


def norm_of(model: Denoiser, block: int) -> Whitening:
    assert isinstance(model, PretrainedClassifier)
    norm = model.block(block).interface["norm"]
    assert isinstance(norm, Whitening)
    return norm


def measured(model: Denoiser, block: int, inputs: Tensor) -> Tensor:
    """The map by the pooled features that the block has now."""
    model.measure(block, inputs)
    return norm_of(model, block).map.clone()
