"""Trap weights on small models: without noise they give examples away, and the run's noise is what stands against."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedblocks.blocks import BlockObjective, build_model
from fedblocks.blocks.families.forecaster import ForecasterSettings
from fedblocks.blocks.families.tabular import TabularSettings
from fedblocks.blocks.families.vit import ViTSettings
from fedblocks.blocks.settings import NoiseSettings, TransformerSettings
from fedblocks.blocks.taps import ContinuousTap
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.privacy.dp_sgd import DPSGD
from fedblocks.settings import SimulationSettings
from fedblocks.threat_model.attacks.crafted_weights import ATTACK, nearest
from fedblocks.threat_model.block_problem import BlockProblem
from fedblocks.threat_model.results import Result
from fedblocks.threat_model.subject import Subject
from fedblocks.threat_model.trap_weights import craft, unsuited

CASES: dict[str, TransformerSettings] = {
    "vit, one layer": ViTSettings(hidden_size=48, layers=1, blocks=1, image_size=8, patch_size=4, heads=2),
    "vit, two layers": ViTSettings(hidden_size=96, layers=2, blocks=1, image_size=8, patch_size=4, heads=4),
    "forecaster": ForecasterSettings(
        hidden_size=48, layers=2, blocks=1, context_length=40, horizon=16, patch_size=8, heads=4
    ),
    "forecaster, two heads a token": ForecasterSettings(
        hidden_size=48, layers=1, blocks=1, context_length=40, horizon=16, patch_size=8, channels=2, heads=4
    ),
    "tabular": TabularSettings(hidden_size=48, layers=1, blocks=1, numeric=9, classes=3, heads=4),
}


def problem_of(settings: TransformerSettings) -> tuple[BlockProblem, ContinuousTap]:
    torch.manual_seed(0)
    model = build_model(settings, NoiseSettings())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    problem = BlockProblem(model, 0, BlockObjective(), settings)
    return problem, next(tap for tap in problem.taps if isinstance(tap, ContinuousTap))


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_most_of_many_examples_are_read_off_their_summed_gradient(settings: TransformerSettings) -> None:
    """Oracle: the examples. Would catch a head that reads another token, a scale that is lost, or a threshold out of
    place. The sum is of gradients clipped to one norm each, as any clipping per example leaves them."""
    problem, tap = problem_of(settings)
    assert unsuited(problem, tap) is None
    generator = torch.Generator().manual_seed(1)
    field = problem.by_name[tap.field]

    def drawn(count: int) -> torch.Tensor:
        if field.what == "image":
            return torch.rand(count, *field.shape, generator=generator, dtype=torch.float64)
        return torch.randn(count, *field.shape, generator=generator, dtype=torch.float64).clamp(-1, 1)

    traps = craft(problem, tap, problem.model.float(), tap.cut(drawn(400)))
    crafted = BlockProblem(traps.model, 0, BlockObjective(), settings)
    count = traps.rows // 8
    truth = drawn(count)
    values = {tap.field: truth}
    for each in crafted.fields:
        if not each.nuisance and each.name != tap.field:
            values[each.name] = (
                torch.randint(each.classes, (count, *each.shape), generator=generator)
                if each.classes
                else torch.randn(count, *each.shape, generator=generator, dtype=torch.float64)
            )
    gradients = crafted.gradient(crafted.sample(values, generator))
    norms = gradients.norm(dim=1, keepdim=True)
    clipped = (gradients / norms.clamp_min(1e-12) * norms.clamp(max=1.0)).sum(0)
    guesses = traps.read(crafted, clipped, 2 * count)
    error = (nearest(guesses, traps.carried(truth)) - traps.carried(truth)).abs().flatten(1).amax(1)
    assert float((error < 1e-3).double().mean()) >= 0.7


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            TabularSettings(hidden_size=48, layers=1, blocks=1, numeric=5, categories=(3,)),
            "1 further tokens whose embedding depends",
        ),
        (
            TabularSettings(hidden_size=32, layers=1, blocks=1, numeric=20),
            "20 positions cannot be told apart in 32",
        ),
    ],
)
def test_where_no_trap_can_be_set_the_reason_has_numbers(settings: TransformerSettings, says: str) -> None:
    """Would catch an attack mounted where it cannot succeed, whose failure is then taken for protection."""
    why = unsuited(*problem_of(settings))
    assert why is not None
    assert why.startswith(says)


@pytest.fixture(scope="module")
def subject(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    model = small.model.model_copy(update={"hidden_size": 96, "heads": 4})
    folder: Path = tmp_path_factory.mktemp("traps") / "run"
    return replace(Subject.of(prepare(small.model_copy(update={"model": model}), folder)), blocks=(0,))


def results_of(subject: Subject) -> list[Result]:
    assert ATTACK.applies(subject) is None
    return [each for each in ATTACK.run(subject) if isinstance(each, Result)]


def test_the_plans_noise_hides_what_its_absence_gives_away(subject: Subject) -> None:
    """Would catch a control that measures another attack, and noise that is counted but not added."""
    exact, closer, warned = results_of(subject)
    assert exact.control is not None
    assert exact.control.value > 0.5
    assert exact.value is not None
    assert exact.value.value == 0
    assert exact.outcome == closer.outcome == "not found"
    assert exact.wins_at is not None
    assert exact.wins_at < subject.plan.noise_multiplier
    assert exact.protected
    assert (warned.outcome, warned.reason) == ("held", "a company is warned in its log")
    assert warned.baseline is not None
    assert warned.baseline.value == 0


def test_a_run_with_next_to_no_noise_is_found_out(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an attack that cannot say yes."""
    mechanism = subject.mechanism(0)
    assert isinstance(mechanism, DPSGD)
    quiet = replace(mechanism, noise_multiplier=1e-7)
    monkeypatch.setattr(Subject, "mechanism", lambda self, block: quiet)
    exact, closer, _ = results_of(subject)
    assert exact.outcome == "found"
    assert closer.value is not None
    assert closer.value.low > 10


def test_blocks_without_a_map_of_their_own_and_several_steps_are_not_attacked(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch an attack that claims "not found" where it could not have found anything."""
    model = small.model.model_copy(update={"features": "prefix"})
    subject = Subject.of(prepare(small.model_copy(update={"model": model}), tmp_path / "run"))
    assert ATTACK.applies(replace(subject, blocks=(1,))) == (
        "this block reads no real part of an example's input by a linear map of its own"
    )
    training = subject.plan.training.model_copy(update={"local_steps": 2})
    several = replace(subject, plan=subject.plan.changed(training=training.model_dump()), blocks=(0,))
    assert ATTACK.applies(several) == "the traps move with the first of several local steps"
