"""Baselines with one flag each: the rules of the server against their oracles, and training without a federation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from torch import Tensor, nn

from fedblocks.blocks import digest
from fedblocks.blocks.examples import Examples
from fedblocks.errors import InputError
from fedblocks.experiments.baselines.one_place import public_model, together, train_in_one_place
from fedblocks.experiments.baselines.rules import Baseline, baseline_settings
from fedblocks.experiments.baselines.running import run_in_one_place
from fedblocks.experiments.presets import load_settings
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.dp_sgd import DPSGD
from fedblocks.privacy.randomness import Randomness
from fedblocks.privacy.sampling import PoissonSampling
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.optimizer import BlockOptimizer
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings


def bits(run: RunFolder) -> bytes:
    model = Checkpoint.load(run.checkpoints).model
    return digest(model.shared, *model.blocks)


def preset_file(settings: SimulationSettings, folder: Path) -> str:
    """The settings as a file that the command could be given."""
    raw = settings.model_dump(mode="json", exclude_none=True)
    path = folder / "own.toml"
    path.write_bytes(tomli_w.dumps(raw).encode())
    return str(path)


def test_fedavg_of_one_company_and_one_step_is_plain_sgd() -> None:
    """Would catch a mean, a divisor or a server rate that is not that of SGD on the mean loss."""
    rate, n = 0.3, 12
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 5, generator=generator), torch.randn(n, generator=generator)
    training = load_settings("digits", ["training.server_optimizer=fedavg"]).training
    server = BlockOptimizer(training.model_copy(update={"server_learning_rate": 1.0}), 5)
    company = DPSGD(
        sampling=PoissonSampling(1.0), noise_multiplier=0.0, max_grad_norm=1e6, expected_batch_size=n,
        learning_rate=rate, steps=1, noise_draws=1,
    )  # fmt: skip
    ours, plain = nn.Linear(5, 1, bias=False), nn.Linear(5, 1, bias=False)
    plain.load_state_dict(ours.state_dict())
    sgd = torch.optim.SGD(plain.parameters(), lr=rate)

    def losses(indices: Tensor, draws: int) -> Tensor:
        return (ours(x[indices].repeat_interleave(draws, 0))[:, 0] - y[indices]) ** 2

    for round_ in range(5):
        block = ours.weight.detach().flatten().clone()
        randomness = Randomness.from_seed(round_, "one company")
        mean = company.train(ours, losses, examples=n, randomness=randomness)  # of one company
        with torch.no_grad():
            ours.weight.copy_(server.step(block, mean).view_as(ours.weight))
        sgd.zero_grad()
        ((plain(x)[:, 0] - y) ** 2).mean().backward()
        sgd.step()
        torch.testing.assert_close(ours.weight, plain.weight, rtol=1e-4, atol=1e-5)


def test_fedprox_without_a_pull_is_fedavg_and_with_a_strong_one_stays(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a FedProx that is another algorithm at mu = 0, or one that mu does not reach in a whole run."""
    preset = preset_file(small, tmp_path)
    over = ["training.local_steps=3", "training.rounds=2", "protocol=off"]
    runs = {}
    for name, more in {
        "fedavg": [],
        "fedprox": ["training.proximal=0.0"],
        "strong": ["training.proximal=1e6"],
    }.items():
        baseline: Baseline = "fedavg" if name == "fedavg" else "fedprox"
        settings = baseline_settings(preset, baseline, [*over, *more])
        runs[name] = prepare(settings, tmp_path / name / "run")
        simulate(runs[name])
    assert bits(runs["fedprox"]) == bits(runs["fedavg"])
    norms = {
        name: [task["update_norm"] for row in run.metrics()[1:] for task in row["tasks"]]
        for name, run in runs.items()
    }
    assert max(norms["strong"]) < 1e-3 * min(norms["fedavg"])


def test_central_is_training_on_the_pooled_examples_of_all_companies(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch examples that are left out, another order of rounds, or an evaluation that changes the bits."""
    settings = baseline_settings(preset_file(small, tmp_path), "central", ["training.evaluate_every=3"])
    run = prepare(settings, tmp_path / "run")
    result = run_in_one_place(run, "central")
    parts = [Examples.load(home / "data.npz") for home in run.homes()]
    pooled = together(parts)
    assert len(pooled) == sum(len(part) for part in parts)
    model = public_model(run)
    randomness = Randomness.from_seed(settings.seed, "one place", "all")
    train_in_one_place(model, pooled, run.plan(), companies=len(parts), randomness=randomness)
    kept = Checkpoint.load(run.checkpoints)
    assert kept.round == settings.training.rounds
    trained = {
        name: p for b in range(2) for name, p in model.state_dict().items() if name.startswith(f"blocks.{b}.")
    }
    for name, value in trained.items():
        assert torch.equal(kept.model.blocks[int(name.split(".")[1])][name], value)
    heldout = Examples.load(run.evaluation / "heldout.npz")
    found = model.chain_quality(heldout.inputs, heldout.targets, torch.Generator().manual_seed(0))
    assert result["accuracy"] == found[-1]
    assert [row["round"] for row in run.metrics()] == list(range(settings.training.rounds + 1))
    assert [row["round"] for row in run.metrics() if "quality" in row] == [0, 3, 4]
    assert result["baseline"] == "central"
    assert result["guarantee"].startswith("without the protocol")


def test_alone_is_the_mean_over_companies_with_their_own_examples_only(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a company that has seen another's examples, or a figure of one company for all."""
    settings = baseline_settings(preset_file(small, tmp_path), "alone", ["training.rounds=2"])
    run = prepare(settings, tmp_path / "run")
    result = run_in_one_place(run, "alone")
    heldout, found = Examples.load(run.evaluation / "heldout.npz"), []
    for home in run.homes():
        model = public_model(run)
        randomness = Randomness.from_seed(settings.seed, "one place", home.name)
        train_in_one_place(
            model, Examples.load(home / "data.npz"), run.plan(), companies=1, randomness=randomness
        )
        chain = model.chain_quality(heldout.inputs, heldout.targets, torch.Generator().manual_seed(0))
        found.append(chain[-1])
    assert result["accuracy"] == pytest.approx(sum(found) / len(found))
    assert sorted(result["accuracy_by_company"]) == [home.name for home in run.homes()]
    assert Checkpoint.load(run.checkpoints).round == 0, "no company's own model is the run's"


@pytest.mark.parametrize("name", ["fedavg", "fedadam"])
def test_a_rule_of_the_server_keeps_the_privacy_of_the_preset(name: Baseline) -> None:
    """Would catch a baseline that is compared under another guarantee, or what is set beside it being lost."""
    plain = load_settings("digits")
    found = baseline_settings("digits", name, ["training.rounds=7"])
    assert found.privacy == plain.privacy
    assert found.protocol == "on"
    assert found.name == f"digits-{name}"
    expected: dict[str, Any] = {"rounds": 7, "server_optimizer": name}
    expected["server_learning_rate"] = 1.0 if name == "fedavg" else plain.training.server_learning_rate
    assert found.training == plain.training.model_copy(update=expected)


def test_fedadam_over_a_preset_of_another_rule_has_a_rate_of_its_own(tmp_path: Path) -> None:
    """Would catch Adam at the rate of a plain mean, at which it diverges."""
    raw = load_settings("digits", ["training.server_optimizer=fedavg", "training.server_learning_rate=1.0"])
    assert baseline_settings(preset_file(raw, tmp_path), "fedadam").training.server_learning_rate == 0.01


def test_fedprox_of_one_step_is_refused() -> None:
    """Would catch a FedProx that is FedAvg at a lower rate, and is reported under its name."""
    with pytest.raises(InputError, match="local_steps"):
        baseline_settings("digits", "fedprox")
    found = baseline_settings("digits", "fedprox", ["training.local_steps=5"])
    assert (found.training.proximal, found.training.server_optimizer) == (0.1, "fedavg")
    own = baseline_settings("digits", "fedprox", ["training.local_steps=5", "training.proximal=0.5"])
    assert own.training.proximal == 0.5
