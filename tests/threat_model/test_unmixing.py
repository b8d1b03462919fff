"""Sums of several examples, un-mixed in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedblocks.blocks import BlockObjective, build_model
from fedblocks.blocks.examples import Examples
from fedblocks.blocks.families.forecaster import ForecasterSettings
from fedblocks.blocks.families.tabular import TabularSettings
from fedblocks.blocks.families.vit import ViTSettings
from fedblocks.blocks.settings import NoiseSettings, TransformerSettings
from fedblocks.blocks.taps import ContinuousTap
from fedblocks.experiments.bench.sensitivity.families import values_of
from fedblocks.threat_model.block_problem import BlockProblem
from fedblocks.threat_model.closeness import closeness
from fedblocks.threat_model.linear_span import solve
from fedblocks.threat_model.metrics import matched
from fedblocks.threat_model.prior import GaussianPrior
from fedblocks.threat_model.releases import Release
from fedblocks.threat_model.unmixing import solve_one, unmix, unsuited
from fedblocks.threat_model.winning import GRID, wins_at

VIT = ViTSettings(hidden_size=64, layers=1, blocks=1, image_size=8, patch_size=4, heads=4)


def problem_of(settings: TransformerSettings, draws: int = 1) -> BlockProblem:
    torch.manual_seed(0)
    model = build_model(settings, NoiseSettings(P_mean=2.0))
    with torch.no_grad():
        for p in model.parameters():  # what starts at zero hides what lies behind it
            p.add_(0.05 * torch.randn_like(p))
    return BlockProblem(model, 0, BlockObjective(), settings, draws=draws)


def clipped_sum(problem: BlockProblem, k: int, seed: int) -> tuple[Release, Examples]:
    """The sum of k examples' gradients, each of norm 1, as a company computes it."""
    examples = Examples(*values_of(problem.settings.kind, k, torch.Generator().manual_seed(seed)))
    values = problem.sample(problem.values_of(examples), torch.Generator().manual_seed(seed))
    g = problem.gradient(values)
    total = (g / g.norm(dim=1, keepdim=True)).float().sum(0).double()
    return Release(total, k, 1, 0.0), examples


@pytest.mark.parametrize("k", [1, 2, 4])
def test_images_and_labels_of_a_sum_come_back(k: int) -> None:
    """Would catch heads, queries or parts of the modulation that are taken for others."""
    problem = problem_of(VIT)
    (tap,) = problem.taps
    assert unsuited(problem, tap, k) is None
    exact = labels = 0
    for seed in range(4):
        release, examples = clipped_sum(problem, k, seed)
        prior = GaussianPrior.fit(torch.rand(20, 1, 8, 8), (0.0, 1.0))
        found = unmix(problem, tap, release, prior, labels=True)
        if len(found) < k:
            continue
        values = torch.stack([each.solution.values for each in found])
        order = matched(values.numpy(), examples.inputs.double().numpy())
        scores = closeness(problem.by_name["image"], values[torch.from_numpy(order)], examples.inputs)
        exact += int((scores >= 40).sum())
        labels += sum(found[i].label == int(y) for i, y in zip(order, examples.targets, strict=True))
    assert exact >= 0.9 * 4 * k
    assert labels >= 0.9 * 4 * k


def test_both_draws_of_one_example_give_the_same_image() -> None:
    problem = problem_of(VIT, draws=2)
    (tap,) = problem.taps
    release, examples = clipped_sum(problem, 1, 3)
    found = unmix(problem, tap, release, GaussianPrior.fit(torch.rand(20, 1, 8, 8)), labels=False)
    assert len(found) == 2
    for each in found:
        assert closeness(problem.by_name["image"], each.solution.values[None], examples.inputs)[0] > 40
    assert found[0].log_sigma < found[1].log_sigma


def test_a_sum_that_was_shuffled_gives_nothing_and_says_so() -> None:
    """A control: were the answer in the model, it would come from a shuffled sum too."""
    problem = problem_of(VIT)
    (tap,) = problem.taps
    release, _ = clipped_sum(problem, 2, 0)
    shuffled = Release(release.vector[torch.randperm(problem.size)], 2, 1, 0.0)
    found = unmix(problem, tap, shuffled, GaussianPrior.fit(torch.rand(20, 1, 8, 8)), labels=False)
    assert all(float(each.solution.residual.max()) > 0.1 for each in found)


@pytest.mark.parametrize(
    ("settings", "k", "why"),
    [
        (VIT.model_copy(update={"layers": 2}), 1, "2 layers"),
        (
            VIT.model_copy(update={"patch_size": 2}),
            1,
            "4 heads show no more mixtures than that, of 17 tokens",
        ),
        (VIT, 17, "17 noise draws, and a head is 16 wide"),
        (
            ForecasterSettings(
                hidden_size=48, layers=1, blocks=1, context_length=24, horizon=16, patch_size=8
            ),
            1,
            "several noisy tokens",
        ),
    ],
)
def test_what_cannot_be_unmixed_is_refused_with_the_figures(
    settings: TransformerSettings, k: int, why: str
) -> None:
    problem = problem_of(settings)
    tap = next(tap for tap in problem.taps if isinstance(tap, ContinuousTap))
    assert why in str(unsuited(problem, tap, k))


@pytest.mark.parametrize("at", [None, 0, 7, len(GRID) - 1])
def test_the_noise_at_which_an_attack_wins_is_found(at: int | None) -> None:
    limit = -np.inf if at is None else GRID[at]
    asked = []

    def gain(z: float) -> float:
        asked.append(z)
        return 2.0 if z <= limit else 0.0

    assert wins_at(gain) == (None if at is None else GRID[at])
    assert len(asked) <= 5


def test_draws_that_look_alike_are_completed_by_their_noisy_tokens() -> None:
    """Two draws of nearly one noise level show nearly the same mixtures: float32 leaves too few directions."""
    settings = TabularSettings(hidden_size=32, layers=1, blocks=1, numeric=6, categories=(6, 6), classes=2)
    problem = problem_of(settings, draws=2)
    tap = next(tap for tap in problem.taps if isinstance(tap, ContinuousTap))
    examples = Examples(*values_of(settings.kind, 6, torch.Generator().manual_seed(4)))
    values = problem.sample(problem.values_of(examples), torch.Generator().manual_seed(5))
    values["level"][:, 1] = values["level"][:, 0] + 0.01
    values["noise"][:, 1] = values["noise"][:, 0]
    prior = GaussianPrior.fit(torch.rand(20, 6), (-1.0, 1.0))
    field = problem.by_name[tap.field]
    scores = {}
    for name, solved in (("plain", solve), ("completed", solve_one)):
        found = [
            solved(problem, tap, Release(g.float().double(), 1, 1, 0.0), prior, 2).values
            for g in problem.gradient(values)
        ]
        scores[name] = closeness(field, torch.stack(found), values[tap.field])
    assert np.min(scores["completed"]) > 60
    assert np.min(scores["plain"]) < 40
