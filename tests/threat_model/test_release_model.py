"""A release as its attacker models it: the mechanism's own values, a right derivative, a right prediction."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from fedblocks.blocks import BlockObjective, build_model
from fedblocks.blocks.denoiser import GaussianDenoiser
from fedblocks.blocks.examples import Examples
from fedblocks.blocks.families.dit import DiTSettings
from fedblocks.blocks.families.forecaster import ForecasterSettings
from fedblocks.blocks.families.tabular import TabularSettings
from fedblocks.blocks.families.vit import ViTSettings
from fedblocks.blocks.settings import NoiseSettings, TransformerSettings
from fedblocks.experiments.bench.sensitivity.families import values_of
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.settings import SimulationSettings
from fedblocks.settings.load import validated
from fedblocks.threat_model.block_problem import BlockProblem
from fedblocks.threat_model.clip_model import ClipModel, unmodelled
from fedblocks.threat_model.library import Library
from fedblocks.threat_model.lm_map import LMMAP, Budget, Start
from fedblocks.threat_model.prediction import information
from fedblocks.threat_model.release_model import ReleaseModel, step_rate
from fedblocks.threat_model.releases import Release, released
from fedblocks.threat_model.starts import Starts
from fedblocks.threat_model.subject import Subject
from fedblocks.threat_model.unknowns import Guess, Layout

VIT = ViTSettings(hidden_size=32, layers=1, blocks=1, image_size=8, patch_size=4, heads=4)
FAMILIES: dict[str, TransformerSettings] = {
    "vit": VIT,
    "dit": DiTSettings(hidden_size=16, layers=1, blocks=1, image_size=4, patch_size=2, classes=3),
    "tabular": TabularSettings(hidden_size=16, layers=1, blocks=1, numeric=3, categories=(3, 2), classes=3),
    "forecaster": ForecasterSettings(
        hidden_size=16, layers=2, blocks=1, context_length=9, horizon=3, patch_size=3
    ),
}


def problem_of(settings: TransformerSettings, draws: int = 1, interface: bool = False) -> BlockProblem:
    torch.manual_seed(0)
    model = build_model(settings, NoiseSettings(P_mean=2.0))
    with torch.no_grad():
        for p in model.parameters():  # what starts at zero hides what lies behind it
            p.add_(0.05 * torch.randn_like(p))
    return BlockProblem(model, 0, BlockObjective(), settings, draws=draws, interface=interface)


def examples_of(settings: TransformerSettings, count: int, seed: int = 0) -> Examples:
    return Examples(*values_of(settings.kind, count, torch.Generator().manual_seed(seed)))


def model_of(problem: BlockProblem, clip: ClipModel, *, draws: int = 1, steps: int = 1) -> ReleaseModel:
    layout = Layout(problem, examples_of(problem.settings, 40, seed=7), draws * steps)
    return ReleaseModel(layout, clip, steps=steps, rate=0.0)


def truth_of(model: ReleaseModel, k: int, seed: int = 0) -> Guess:
    problem, generator = model.problem, torch.Generator().manual_seed(seed)
    known = problem.values_of(examples_of(problem.settings, k, seed))
    drawn = [problem.sample(known, generator) for _ in range(model.steps)]
    nuisance = {n: torch.cat([each[n] for each in drawn], dim=1) for n in ("level", "noise")}
    return model.layout.guess(known | nuisance)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_factored_gradient_is_the_problems(name: str) -> None:
    """Would catch a layer whose calls are counted twice or left out, and noise that the layout loses."""
    problem = problem_of(FAMILIES[name], draws=2)
    model = model_of(problem, ClipModel(kind="flat", bound=1e9), draws=2)
    generator = torch.Generator().manual_seed(1)
    values = problem.sample(problem.values_of(examples_of(FAMILIES[name], 2)), generator)
    ours = model.at(model.layout.guess(values)).vector
    torch.testing.assert_close(ours, problem.gradient(values).sum(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["flat", "per-layer", "automatic", "unit"])
@pytest.mark.parametrize(("draws", "steps"), [(1, 1), (2, 2)])
def test_the_normal_equations_are_those_of_finite_differences(kind: str, draws: int, steps: int) -> None:
    """Would catch a clip whose factor is held, and draws or examples that share each other's derivative."""
    problem = problem_of(VIT, draws=draws, interface=kind == "flat")
    model = model_of(problem, ClipModel(kind=kind, bound=0.05), draws=draws, steps=steps)  # type: ignore[arg-type]
    guess = truth_of(model, 2)
    found = model.at(guess)
    generator = torch.Generator().manual_seed(2)
    misfit = {
        n: torch.randn(model.own[n].shape, generator=generator, dtype=torch.float64) for n in problem.names
    }
    weights = {n: 1.0 + i / 7 for i, n in enumerate(misfit)}
    curvature, slope = model.normal(guess, found, misfit, weights)
    scale = torch.cat(
        [torch.full((model.own[n].numel(),), w, dtype=torch.float64) for n, w in weights.items()]
    )
    residual = torch.cat([misfit[n].flatten() for n in problem.names])
    for _ in range(3):
        way = torch.randn(guess.flat.shape, generator=generator, dtype=torch.float64)
        ahead, behind = (model.at(guess.moved(guess.flat + h * way)).vector for h in (1e-6, -1e-6))
        moved = (ahead - behind) / 2e-6 * scale
        along = way.flatten()
        torch.testing.assert_close(along @ curvature @ along, moved @ moved, rtol=1e-5, atol=0)
        expected = moved @ (residual * scale)
        torch.testing.assert_close(along @ slope, expected, rtol=1e-4, atol=1e-5 * float(moved.norm()))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"training": {"local_steps": 3}},
        {"privacy": {"clipping": "per-layer"}},
        {"privacy": {"clipping": "automatic"}},
        {"training": {"noise_draws": 2}},
    ],
    ids=str,
)
def test_a_release_is_explained_from_its_own_truth(
    small: SimulationSettings,
    tmp_path: Path,
    changed: dict[str, dict[str, object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Would catch an attacker's model of another clip, another divisor or other steps than the run's own."""
    raw = small.model_dump()
    for part, fields in changed.items():
        raw[part] |= fields
    subject = Subject.of(prepare(validated(SimulationSettings, raw), tmp_path / "run"), block=0)
    drawn = []
    original = GaussianDenoiser.draw

    def draw(self: GaussianDenoiser, *args: object) -> object:
        drawn.append(original(self, *args))  # type: ignore[arg-type]
        return drawn[-1]

    monkeypatch.setattr(GaussianDenoiser, "draw", draw)
    victim = subject.victims(1, "explained")
    release = released(subject, 0, victim, "explained", noisy=False)
    problem, mechanism, training = subject.problem(0), subject.mechanism(0), subject.plan.training
    layout = Layout(problem, subject.public, training.noise_draws * training.local_steps)
    model = ReleaseModel(
        layout, ClipModel.of(mechanism), steps=training.local_steps, rate=step_rate(mechanism)
    )
    level = torch.cat([d.level.double().log() for d in drawn])[None]
    noise = torch.cat([d.noise.double() for d in drawn])[None]
    truth = layout.guess(problem.values_of(victim) | {"level": level, "noise": noise})
    error = (model.at(truth).vector - release.vector).norm() / release.vector.norm()
    assert float(error) < 1e-3


def test_the_prediction_is_the_error_of_the_linear_problem() -> None:
    """Against many simulated posterior modes; would catch a bias that is forgotten or a prior that counts twice."""
    model = model_of(problem_of(VIT), ClipModel(kind="flat", bound=1.0))
    truth = truth_of(model, 1)
    found, noise = information(model, truth), 0.02
    generator = torch.Generator().manual_seed(3)
    values, vectors = torch.linalg.eigh(found.fisher)
    root = vectors * values.clamp_min(0).sqrt()
    posterior = found.fisher / noise**2 + found.precision
    errors = []
    for _ in range(400):
        drawn = root @ torch.randn(len(root), generator=generator, dtype=torch.float64)
        errors.append(torch.linalg.solve(posterior, drawn / noise - found.precision @ found.offset).square())
    simulated = float(torch.stack(errors).mean(0)[found.rows["image"][0]].mean())
    assert float(found.errors(noise)["image"]) == pytest.approx(simulated, rel=0.1)
    assert float(found.gain(1e-4, "image")) > 10
    assert abs(float(found.gain(100.0, "image"))) < 0.05


def test_codes_label_and_numbers_of_a_row_come_back() -> None:
    """Would catch a search that stays at the first value of a discrete field."""
    settings = TabularSettings(hidden_size=32, layers=1, blocks=1, numeric=3, categories=(4, 3), classes=3)
    problem = problem_of(settings)
    model = model_of(problem, ClipModel(kind="flat", bound=1.0))
    exact = 0
    for seed in range(4):
        truth = truth_of(model, 1, seed)
        release = Release(model.at(truth).vector, 1, 1, 0.0)
        generator = torch.Generator().manual_seed(seed)
        attack = LMMAP(model, release, Budget(attempts=3))
        found = attack.run(Starts(attack, release, generator))
        same = all(torch.equal(found.guess.discrete[n], v) for n, v in truth.discrete.items())
        exact += same and bool((found.guess.flat - truth.flat)[:, :3].abs().max() < 1e-3)
    assert exact >= 3


def test_much_noise_leaves_the_posterior_at_the_prior_and_little_finds_the_candidate_itself() -> None:
    """Would catch scores of the wrong sign or scale: then one candidate wins whatever the noise."""
    problem = problem_of(VIT)
    model = model_of(problem, ClipModel(kind="flat", bound=1.0))
    library = Library(model, examples_of(VIT, 30), 100, torch.Generator().manual_seed(4))
    own = Guess(library.guess.flat[17:18], {n: v[17:18] for n, v in library.guess.discrete.items()})
    vector = model.at(own).vector
    torch.testing.assert_close(library.norms[17], vector.square().sum(), rtol=1e-4, atol=0)
    assert torch.equal(library.best(vector, 1)[0].flat, own.flat)
    (few, one), (much, all_) = library.average(vector, 1e-4, 1), library.average(vector, 1e4, 1)
    assert one < 1.5
    torch.testing.assert_close(few.flat, own.flat)
    assert all_ > 99
    torch.testing.assert_close(much.flat[0], library.guess.flat.mean(0), rtol=1e-3, atol=1e-3)


def test_an_attack_without_time_tries_one_start() -> None:
    """Would catch a search that goes on after its clock is over."""
    model = model_of(problem_of(VIT), ClipModel(kind="flat", bound=1.0))
    release = Release(model.at(truth_of(model, 1)).vector, 1, 1, 0.0)
    attack = LMMAP(model, release, Budget(attempts=5, stop=lambda: True))
    wrong = islice((Start(truth_of(model, 1, seed=s)) for s in range(1, 9)), 5)
    assert attack.run(wrong).attempts == 1


def test_a_release_of_zeros_is_attacked_and_explains_nothing() -> None:
    """Would catch a division by the size of what is nothing: a row none of whose cells counts has no gradient."""
    settings = TabularSettings(hidden_size=32, layers=1, blocks=1, numeric=3, categories=(4, 3), classes=3)
    model = model_of(problem_of(settings), ClipModel(kind="unit"))
    release = Release(torch.zeros_like(model.at(truth_of(model, 1)).vector), 1, 1, 0.0)
    attack = LMMAP(model, release, Budget(attempts=2, iterations=3, short=2))
    found = attack.run(Starts(attack, release, torch.Generator().manual_seed(0)))
    assert torch.isfinite(found.guess.flat).all()
    assert found.residual > 0.1


def test_what_cannot_be_modelled_says_why(small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch a moving clip over several steps that is attacked as one that stays."""
    raw = small.model_dump()
    raw["training"] |= {"local_steps": 2}
    raw["privacy"] |= {"clip_quantile": 0.5}
    subject = Subject.of(prepare(validated(SimulationSettings, raw), tmp_path / "run"), block=0)
    assert "2 local steps the clip moves" in str(unmodelled(subject.mechanism(0)))
