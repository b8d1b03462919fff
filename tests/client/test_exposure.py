"""Rows that one example owns: found where they are, counted as gradients say, told to the company's log alone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from support.coordinating import Coordinator

from fedblocks.blocks import BlockObjective, Denoiser, Seeded, build_model
from fedblocks.blocks.examples import Examples
from fedblocks.client import app as client_app
from fedblocks.client import exposure
from fedblocks.client.exposure import Owned, owned_rows
from fedblocks.experiments.simulation.preparation import fresh_model, make_plan, prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.clipping import PerExampleClipping
from fedblocks.server.optimizer import BlockOptimizer
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import Plan, SimulationSettings

N = 12


@pytest.fixture
def plan(small: SimulationSettings) -> Plan:
    return make_plan(small, fresh_model(small), "run").changed(
        training=small.training.model_dump() | {"noise_draws": 3}, max_grad_norm=0.05
    )


@pytest.fixture
def model(plan: Plan) -> Denoiser:
    torch.manual_seed(0)
    model = build_model(plan.model, plan.noise)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def data_of(count: int, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    return Examples(torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 10)


def seeded(seed: int = 0) -> Seeded:
    return Seeded(torch.Generator().manual_seed(seed))


def with_trap(model: Denoiser, data: Examples, plan: Plan, count: int) -> Denoiser:
    """Row 7 of the first perceptron is reached by the examples with the largest pre-activations of it alone."""
    trapped = copy.deepcopy(model)
    layer = trapped.blocks[0].get_submodule("layers.0.mlp.0")
    assert isinstance(layer, torch.nn.Linear)
    top: list[torch.Tensor] = []

    def record(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        top.append(output.detach()[..., 7].reshape(len(data), -1).amax(1))

    handle = layer.register_forward_hook(record)
    objective = BlockObjective(weight=plan.noise.weight)
    objective(trapped, block=0, inputs=data.inputs, targets=data.targets, source=seeded(), draws=3)
    handle.remove()
    ranked = torch.stack(top).amax(0).sort(descending=True).values
    with torch.no_grad():
        layer.weight[7] *= 400
        layer.bias[7] = 400 * (layer.bias[7] - (ranked[count - 1] + ranked[count]) / 2)
    return trapped


def test_the_norms_are_those_of_per_example_gradients(model: Denoiser, plan: Plan) -> None:
    """Oracle: autograd, an example at a time. Would catch draws or uses of one layer that are added up after the norm
    was taken, or laid at another example's door."""
    data, source = data_of(5), seeded(3)
    active = model.freeze_all_but(0, interface=False)
    rows = exposure._rows(model, active, 0, data, plan, source)
    names = dict(active.named_parameters())
    with PerExampleClipping(active, max_grad_norm=1.0):  # the layers that training clips
        trained = {name for name, p in names.items() if p.requires_grad and p.dim() == 2}
    assert set(rows) == trained
    own = seeded(3)
    draw = model.draw(0, data.targets.repeat_interleave(3, 0), own)
    objective = BlockObjective(weight=plan.noise.weight)
    for i in range(5):
        context = model.context(0, data.inputs[i : i + 1])
        loss = objective.at(
            model, 0, context, data.targets[i : i + 1].repeat(3), draw[torch.arange(3 * i, 3 * i + 3)]
        )
        for name in trained:
            (expected,) = torch.autograd.grad(loss.sum() / 3, names[name], retain_graph=True)
            found = exposure._norms(rows[name], 5)[i].float()
            torch.testing.assert_close(found, expected.norm(dim=1), rtol=1e-4, atol=1e-7)


def test_a_row_that_one_example_reaches_is_named_and_one_that_two_reach_is_not(
    model: Denoiser, plan: Plan
) -> None:
    """Would catch a share that is taken of the wrong sum, and an alarm at any ordinary model."""
    data = data_of(N)
    assert owned_rows(model, 0, data, plan, examples=N, source=seeded()) == []
    for count, expected in ((1, True), (3, False)):
        trapped = with_trap(model, data, plan, count)
        hits = [owned_rows(trapped, 0, data, plan, examples=N, source=seeded(s)) for s in range(6)]
        owned = [7 in each.rows for found in hits for each in found if each.tensor == "layers.0.mlp.0.weight"]
        assert any(owned) == expected


def test_an_example_whose_gradient_is_not_finite_hides_no_other(model: Denoiser, plan: Plan) -> None:
    """Training drops such an example and keeps the rest. Would catch weights that silence the warning by making one
    example of the batch overflow."""
    data = data_of(N)
    endless = data.inputs[:1] * float("inf")
    loud = Examples(torch.cat([data.inputs, endless]), torch.cat([data.targets, data.targets[:1]]))
    trapped = with_trap(model, data, plan, 1)
    hits = [owned_rows(trapped, 0, loud, plan, examples=N + 1, source=seeded(s)) for s in range(12)]
    assert any(7 in each.rows for found in hits for each in found if each.tensor == "layers.0.mlp.0.weight")


def test_small_steps_from_where_it_looked_add_up_and_no_number_is_a_jump(model: Denoiser) -> None:
    """Would catch NaN in one round, after which nothing looks like a jump any more."""
    state = {name: p.detach() for name, p in model.blocks[0].named_parameters()}
    broken = {name: p * float("nan") for name, p in state.items()}
    before, nan = exposure.sample(state, 0), exposure.sample(broken, 0)
    assert exposure.jumped(before, nan)
    assert exposure.jumped(nan, before)
    assert not exposure.jumped(before, before)


def test_an_example_that_is_taken_again_counts_once(model: Denoiser, plan: Plan) -> None:
    """Would catch a lonely example that hides behind its own copies."""
    (found, *_) = owned_rows(model, 0, data_of(1), plan, examples=8, source=seeded())
    assert len(found.rows) > 0
    assert owned_rows(model, 0, data_of(0), plan, examples=8, source=seeded()) == []


def test_it_is_said_in_few_words() -> None:
    owned = Owned("layers.0.qkv.weight", tuple(range(20)), (3,))
    assert (
        str(owned)
        == "layers.0.qkv.weight: 20 rows (0, 1, 2, 3, 4, 5, 6, 7, ...) and 1 differences of rows (3)"
    )
    assert len(owned) == 21


def test_a_company_is_warned_in_its_own_log_before_it_trains(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a warning that leaves the company, or changes what it releases, or comes every round."""
    counted = []

    def alarmed(*given: object, **named: object) -> list[Owned]:
        counted.append(given[1])
        return [Owned("layers.0.mlp.0.weight", (7,), ())]

    finals = []
    for name in ("quiet", "loud"):
        training = small.training.model_copy(update={"rounds": 4})
        run = prepare(small.model_copy(update={"training": training, "workers": 1}), tmp_path / name)
        with monkeypatch.context() as patch:
            patch.setattr(client_app.secrets, "randbelow", lambda most: 1)
            if name == "loud":
                patch.setattr(exposure, "owned_rows", alarmed)
            simulate(run)
        finals.append([row["quality"] for row in RunFolder(run.path).metrics()])
    assert finals[0] == finals[1]
    assert counted == [0] * 5 + [1] * 5  # once for each of five companies and two blocks in four rounds
    log = (tmp_path / "loud" / "companies" / "company-0" / "company.log").read_text("utf-8")
    lines = [line for line in log.splitlines() if "warning" in line or "trained block-0" in line]
    assert "block 0: one example of 32 owns layers.0.mlp.0.weight: 1 rows (7)" in lines[0]
    assert "trained block-0 in round 1" in lines[1]


@pytest.mark.parametrize(("scale", "expected"), [(0.3, False), (1.0, True)])
def test_a_block_that_is_replaced_has_jumped_and_one_that_has_learnt_has_not(
    scale: float, expected: bool, model: Denoiser
) -> None:
    """Would catch weights crafted in a late round that only chance would notice."""
    state = {name: p.detach() for name, p in model.blocks[0].named_parameters()}
    generator = torch.Generator().manual_seed(1)
    for seed in range(20):
        moved = {
            name: p + scale * p.std() * torch.randn(p.shape, generator=generator) for name, p in state.items()
        }
        assert exposure.jumped(exposure.sample(state, seed), exposure.sample(moved, seed)) == expected
    assert exposure.jumped([1.0] * 64, [1.0] * 128)


def test_weights_that_change_at_once_are_looked_at_in_any_round(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a company that looks once and never again."""
    rounds = []
    training = small.training.model_copy(update={"rounds": 3, "server_learning_rate": 1e-3})
    run = prepare(
        small.model_copy(
            update={"training": training, "model": small.model.model_copy(update={"blocks": 1})}
        ),
        tmp_path / "run",
    )

    def craft(self: object, block: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        rounds.append(len(counted))
        return block if len(rounds) == 1 else torch.flip(block, (0,))

    counted: list[int] = []
    monkeypatch.setattr(client_app.secrets, "randbelow", lambda most: 1)
    monkeypatch.setattr(exposure, "owned_rows", lambda *given, **named: counted.append(1) or [])
    monkeypatch.setattr(BlockOptimizer, "step", craft)
    simulate(run)
    assert rounds == [
        5,
        5,
        10,
    ]  # the first round, none in the second, and the third, whose weights are others


def test_weights_that_are_led_away_in_small_steps_are_looked_at(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a company that compares with the round before, from which a patient coordinator never moves far."""
    training = small.training.model_copy(update={"rounds": 4})
    one = small.model.model_copy(update={"blocks": 1})
    run = prepare(small.model_copy(update={"training": training, "model": one}), tmp_path / "run")
    counted: list[int] = []
    monkeypatch.setattr(client_app.secrets, "randbelow", lambda most: 1)
    monkeypatch.setattr(exposure, "owned_rows", lambda *given, **named: counted.append(1) or [])
    monkeypatch.setattr(BlockOptimizer, "step", lambda self, block, mean: 1.3 * block)
    simulate(run)
    assert len(counted) == 5 * 2  # in the first round, and at 1.69 times its weights


def test_a_count_that_fails_costs_nothing(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a training that is refused, after its charge, because a warning could not be made."""
    coordinator = Coordinator(prepare(small, tmp_path / "run"))
    monkeypatch.setattr(client_app, "warn", lambda *given, **named: 1 / 0)
    result = simulate(coordinator.run)
    assert result["refusals"] == {}
    log = (coordinator.run.companies / "company-1" / "company.log").read_text("utf-8")
    assert "could not count the rows that one example of block 0 owns" in log
