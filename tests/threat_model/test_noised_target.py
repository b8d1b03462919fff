"""Targets that a block denoises, solved for in closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedblocks.blocks import BlockObjective, build_model
from fedblocks.blocks.examples import Examples
from fedblocks.blocks.families.dit import DiTSettings
from fedblocks.blocks.families.forecaster import ForecasterSettings
from fedblocks.blocks.settings import NoiseSettings, TransformerSettings
from fedblocks.blocks.taps import NoisedTap
from fedblocks.experiments.bench.sensitivity.families import values_of
from fedblocks.experiments.presets import load_settings
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.threat_model.attacks import noised_target
from fedblocks.threat_model.attacks.noised_target import ATTACK
from fedblocks.threat_model.block_problem import BlockProblem
from fedblocks.threat_model.closeness import closeness
from fedblocks.threat_model.noised_target import NoisedSolution, solve, unsuited
from fedblocks.threat_model.prior import GaussianPrior
from fedblocks.threat_model.problem import Values
from fedblocks.threat_model.releases import Release
from fedblocks.threat_model.results import Result
from fedblocks.threat_model.subject import Subject

DIT = DiTSettings(hidden_size=64, layers=2, blocks=1, image_size=8, patch_size=4)
SERIES = ForecasterSettings(hidden_size=48, layers=2, blocks=1, context_length=32, horizon=16, patch_size=8)
CASES: dict[str, tuple[TransformerSettings, int]] = {
    "dit": (DIT, 4),
    "dit of one layer": (DIT.model_copy(update={"layers": 1}), 2),
    "forecaster": (SERIES, 3),
    "forecaster of one layer": (
        SERIES.model_copy(update={"layers": 1, "context_length": 16, "channels": 2, "hidden_size": 64}),
        3,
    ),
}


def problem_of(settings: TransformerSettings, draws: int) -> tuple[BlockProblem, NoisedTap]:
    torch.manual_seed(0)
    model = build_model(settings, NoiseSettings(P_mean=-1.2))
    with torch.no_grad():
        for p in model.parameters():  # what starts at zero hides what lies behind it
            p.add_(0.05 * torch.randn_like(p))
    problem = BlockProblem(model, 0, BlockObjective(weight="edm"), settings, draws=draws)
    return problem, next(tap for tap in problem.taps if isinstance(tap, NoisedTap))


def examples_of(problem: BlockProblem, count: int) -> Values:
    examples = Examples(*values_of(problem.settings.kind, count, torch.Generator().manual_seed(1)))
    return problem.sample(problem.values_of(examples), torch.Generator().manual_seed(2))


def solution_of(problem: BlockProblem, tap: NoisedTap, vector: Tensor, whole: bool = False) -> NoisedSolution:
    public = problem.values_of(
        Examples(*values_of(problem.settings.kind, 40, torch.Generator().manual_seed(9)))
    )
    priors = {
        f.name: GaussianPrior.fit(public[f.name], f.bounds)
        for f in problem.fields
        if f.name in public and f.continuous
    }
    return solve(problem, tap, Release(vector.float().double(), 1, 1, 0.0), priors, whole=whole)


@pytest.mark.parametrize("name", CASES)
def test_a_clipped_gradient_gives_target_label_and_noise_back(name: str) -> None:
    """Would catch a modulation, a position or a preconditioning that is not the network's, and a factor of clipping
    (of each layer on its own here) that is taken for 1."""
    problem, tap = problem_of(*CASES[name])
    assert unsuited(problem, tap) is None
    values = examples_of(problem, 3)
    for i, gradient in enumerate(problem.gradient(values)):
        factors = {layer: 0.1 + i + len(layer) % 7 for layer in {n.rsplit(".", 1)[0] for n in problem.names}}
        parts = problem.tensors(gradient)
        clipped = torch.cat([factors[n.rsplit(".", 1)[0]] * parts[n].flatten() for n in problem.names])
        found = solution_of(problem, tap, clipped)
        assert found.residual < 1e-4
        truth = values[tap.field][i]
        assert closeness(problem.by_name[tap.field], found.values[None], truth[None])[0] > 90
        if "label" in values:
            assert found.label == int(values["label"][i])
        order = values["level"][i].argsort()
        torch.testing.assert_close(found.log_sigma, values["level"][i][order], rtol=0, atol=1e-4)
        sigma = values["level"][i].exp().view(-1, *[1] * truth.dim())
        z = (problem.model.clean(truth[None]) + sigma * values["noise"][i])[order]
        assert found.z is not None
        torch.testing.assert_close(found.z, z, rtol=0, atol=1e-2)


def test_one_draw_needs_the_scale_of_the_gradient() -> None:
    """Would catch a claim to have solved what is open: a residual and its factor cannot be told apart then."""
    problem, tap = problem_of(DIT, 1)
    values = examples_of(problem, 2)
    for gradient, truth in zip(problem.gradient(values), values["image"], strict=True):
        whole = solution_of(problem, tap, gradient, whole=True)
        scaled = solution_of(problem, tap, 0.1 * gradient)
        field = problem.by_name["image"]
        assert closeness(field, whole.values[None], truth[None])[0] > 90
        assert closeness(field, scaled.values[None], truth[None])[0] < 60


@pytest.mark.parametrize("name", ["dit", "forecaster"])
def test_a_gradient_in_another_order_gives_nothing_and_says_so(name: str) -> None:
    """A control: were the answer in the model or the prior, it would come from a shuffled gradient too."""
    problem, tap = problem_of(*CASES[name])
    values = examples_of(problem, 1)
    gradient = problem.gradient(values)[0]
    order = torch.randperm(problem.size, generator=torch.Generator().manual_seed(5))
    found = solution_of(problem, tap, gradient[order])
    assert found.residual > 0.1
    near = closeness(problem.by_name[tap.field], found.values[None], values[tap.field])
    assert np.max(near) < 20


def test_a_run_of_generators_is_attacked_through_its_own_mechanism(
    private_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a control that fails, and a release with noise of which the attack claims something."""
    monkeypatch.setattr(noised_target, "_CASES", 6)
    changed = (
        "model.hidden_size=32", "model.layers=2", "model.blocks=2", "model.heads=2", "pretraining.steps=40",
        "training.noise_draws=2", "training.expected_batch_size=20", f'data.private.source="{private_file}"',
    )  # fmt: skip
    run = prepare(load_settings("dit-digits", changed), tmp_path / "run")
    subject = Subject.of(run, block=0)
    assert ATTACK.applies(subject) is None
    results = {
        (each.adversary, each.unit, each.statistic[:5]): each
        for each in ATTACK.run(subject)
        if isinstance(each, Result)
    }
    raw = results["insider", "share", "image"]
    noisy = results["colluding-coordinator", "share", "image"]
    assert raw.value is not None
    assert noisy.value is not None
    assert noisy.control is not None
    assert raw.value.value == noisy.control.value == 1
    assert (noisy.outcome, noisy.value.value) == ("not found", 0)
    label = results["insider", "share", "label"]
    assert label.value is not None
    assert label.value.value == 1


@pytest.mark.parametrize(
    ("settings", "draws", "why"),
    [
        (
            DIT.model_copy(update={"patch_size": 2}), 4,
            "rank 64: 0 clean tokens + 4 x 16 noisy ones leave 0 of 63 directions",
        ),
        (
            DIT.model_copy(update={"image_size": 32, "patch_size": 16, "hidden_size": 512}), 1,
            "a target has 1024 values, and at most 256",
        ),
        (SERIES.model_copy(update={"layers": 1, "context_length": 128}), 1, "its past does not come out"),
    ],
)  # fmt: skip
def test_what_cannot_be_solved_is_refused_with_the_figures(
    settings: TransformerSettings, draws: int, why: str
) -> None:
    problem, tap = problem_of(settings, draws)
    assert why in str(unsuited(problem, tap))
