"""The linear span against real gradients of small models, through the run's own mechanism."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings
from fedblocks.settings.load import validated
from fedblocks.threat_model.block_problem import BlockProblem
from fedblocks.threat_model.closeness import closeness
from fedblocks.threat_model.linear_span import solve, unsuited
from fedblocks.threat_model.prior import GaussianPrior
from fedblocks.threat_model.releases import Release, clip_of, deviation, raw_gradient, released
from fedblocks.threat_model.subject import Subject

CASES: dict[str, TransformerSettings] = {
    "vit": ViTSettings(hidden_size=48, layers=2, blocks=1, image_size=8, patch_size=4),
    "vit, three channels": ViTSettings(
        hidden_size=96, layers=1, blocks=1, image_size=8, patch_size=4, channels=3
    ),
    "forecaster": ForecasterSettings(
        hidden_size=48, layers=2, blocks=1, context_length=40, horizon=16, patch_size=8
    ),
    "forecaster, two channels": ForecasterSettings(
        hidden_size=48, layers=1, blocks=1, context_length=32, horizon=16, patch_size=8, channels=2
    ),
    "tabular": TabularSettings(hidden_size=32, layers=2, blocks=1, numeric=9, categories=(3, 4), classes=3),
    "regressor": TabularSettings(hidden_size=32, layers=2, blocks=1, numeric=5, classes=None),
}


def problem_of(settings: TransformerSettings, draws: int = 1) -> BlockProblem:
    torch.manual_seed(0)
    model = build_model(settings, NoiseSettings())
    with torch.no_grad():
        for p in model.parameters():  # what starts at zero hides what lies behind it
            p.add_(0.05 * torch.randn_like(p))
    return BlockProblem(model, 0, BlockObjective(), settings, draws=draws)


def tap_of(problem: BlockProblem) -> ContinuousTap:
    return next(tap for tap in problem.taps if isinstance(tap, ContinuousTap))


def release_of(vector: torch.Tensor) -> Release:
    return Release(vector.float().double(), 1, 1, 0.0)  # as a company computes it: in float32


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("draws", [1, 2])
def test_one_example_comes_back_exactly(name: str, draws: int) -> None:
    """Would catch a tap that names another weight, other rows, other positions, or a part cut wrongly."""
    problem = problem_of(CASES[name], draws)
    tap = tap_of(problem)
    assert unsuited(tap, 1, draws) is None
    inputs, targets = values_of(problem.settings.kind, 6, torch.Generator().manual_seed(1))
    values = problem.sample(problem.values_of(Examples(inputs, targets)), torch.Generator().manual_seed(2))
    field = problem.by_name[tap.field]
    prior = GaussianPrior.fit(torch.rand(20, *field.shape), field.bounds)
    gradients = problem.gradient(values)
    found = torch.stack([solve(problem, tap, release_of(g), prior, draws).values for g in gradients])
    assert np.min(closeness(field, found, values[tap.field])) > 80


def test_rows_of_another_order_give_nothing_back() -> None:
    """A control: were the answer in the model or the prior, it would come from a shuffled gradient too."""
    problem = problem_of(CASES["vit"])
    tap = tap_of(problem)
    inputs, targets = values_of(problem.settings.kind, 1, torch.Generator().manual_seed(1))
    values = problem.sample(problem.values_of(Examples(inputs, targets)), torch.Generator().manual_seed(2))
    prior = GaussianPrior.fit(torch.rand(20, 1, 8, 8), (0.0, 1.0))
    shuffled = problem.gradient(values)[0][torch.randperm(problem.size)]
    solution = solve(problem, tap, release_of(shuffled), prior, 1)
    assert closeness(problem.by_name["image"], solution.values[None], values["image"])[0] < 20
    assert solution.residual.max() > 0.1


def test_too_many_tokens_are_refused_with_the_figures() -> None:
    tap = tap_of(problem_of(ViTSettings(hidden_size=48, layers=1, blocks=1, image_size=16, patch_size=2)))
    assert unsuited(tap, 1, 1) == (
        "rank 65: 1 x (64 tokens + 1 noisy ones) leave 0 of 47 directions, a part of 4 values needs 4"
    )


def test_a_last_layer_that_shows_mixtures_alone_is_refused() -> None:
    """Would catch an answer from a space that holds sums of tokens and no token; its rank is measured here."""
    problem = problem_of(TabularSettings(hidden_size=32, layers=1, blocks=1, numeric=12, classes=3))
    tap = tap_of(problem)
    inputs, targets = values_of(problem.settings.kind, 1, torch.Generator().manual_seed(1))
    values = problem.sample(problem.values_of(Examples(inputs, targets)), torch.Generator().manual_seed(2))
    rows = problem.tensors(problem.gradient(values)[0])[tap.weight][tap.rows]
    assert int(torch.linalg.matrix_rank(rows)) == tap.shown == 8
    assert unsuited(tap, 1, 1) == "the noisy tokens' heads show 8 mixtures of 13 tokens"
    assert unsuited(tap, 1, 2) is None


@pytest.fixture(scope="module")
def run(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return prepare(small, tmp_path_factory.mktemp("span") / "run")


MECHANISMS: dict[str, dict[str, dict[str, object]]] = {
    "flat": {},
    "automatic": {"privacy": {"clipping": "automatic"}},
    "per-layer": {"privacy": {"clipping": "per-layer"}},
    "local steps": {"training": {"local_steps": 3}},
    "moving clip": {"privacy": {"clip_quantile": 0.5}, "training": {"local_steps": 2}},
    "interface": {"training": {"interface": True}},
    "noise in bands": {"training": {"local_steps": 4, "batches": "epochs", "noise_bands": 2}},
    "shared noise": {"privacy": {"mode": "secure_step"}},
}


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_mechanism_attacked_is_the_plans_own(
    name: str, small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a plan that clips automatically, steps several times or shares noise, attacked as one flat step.

    Its sum has the noise that the account says, and without noise the examples come back.
    """
    raw = small.model_dump()
    for part, changed in MECHANISMS[name].items():
        raw[part] |= changed
    subject = Subject.of(prepare(validated(SimulationSettings, raw), tmp_path / "run"))
    mechanism, block = subject.mechanism(0), 0
    victims = subject.victims(1, name)
    clean = released(subject, block, victims, "a", noisy=False)
    noised = released(subject, block, victims, "a", noisy=True, companies=3)
    expected = deviation(mechanism, 3)
    spread = float((noised.vector - clean.vector).std())
    tolerance = 0.2 if name == "moving clip" else 0.05  # of which the first clip alone is known beforehand
    assert spread == pytest.approx(expected, rel=tolerance)
    assert noised.noise == expected
    assert float(clean.vector.norm()) <= clip_of(mechanism) * clean.steps * 1.01
    problem = subject.problem(block)
    assert len(clean.vector) == problem.size
    tap = tap_of(problem)
    field = problem.by_name[tap.field]
    prior = GaussianPrior.fit(subject.public.inputs, field.bounds)
    draws = subject.plan.training.noise_draws * clean.steps
    if unsuited(tap, 1, draws) is None:
        found = solve(problem, tap, clean, prior, draws).values
        assert closeness(field, found[None], victims.inputs)[0] > 40


def test_a_raw_gradient_is_the_problems_own(run: RunFolder) -> None:
    """Would catch a gradient of other parameters, and experiments that cannot be repeated."""
    subject = Subject.of(run)
    victims = subject.victims(2, "raw")
    alone = [raw_gradient(subject, 0, victims[i : i + 1], "x", i).vector for i in range(2)]
    assert all(len(vector) == subject.problem(0).size for vector in alone)
    again = raw_gradient(subject, 0, victims[:1], "x", 0).vector
    assert torch.equal(again, alone[0])
    other = raw_gradient(replace(subject, seed=1), 0, victims[:1], "x", 0).vector
    assert not torch.equal(other, alone[0])
