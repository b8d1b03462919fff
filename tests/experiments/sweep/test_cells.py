"""What a cell computes: the same as a run by itself, whatever it shares with others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SMALL

from fedblocks import load_run
from fedblocks.blocks import Denoiser, digest
from fedblocks.blocks.examples import Examples
from fedblocks.experiments.baselines.one_place import train_in_one_place
from fedblocks.experiments.simulation.preparation import make_plan, prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.experiments.sweep.cell import Folders, run_cell
from fedblocks.experiments.sweep.grid import Cell, Grid
from fedblocks.experiments.sweep.shared import digest_of, public_model, start
from fedblocks.privacy.randomness import Randomness
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.run_folder import RunFolder


def grid(private_file: Path, *over: str, more: tuple[str, ...] = (), seeds: int = 1) -> Grid:
    own = [each for each in (*SMALL, "training.rounds=2") if each.partition("=")[0] not in "".join(over)]
    overrides = [*own, f"data.private.source={private_file}", *more]
    return Grid.of("digits", list(over), overrides=overrides, seeds=seeds)


def model_of_run(path: Path) -> tuple[Denoiser, object]:
    return load_run(path).model()


def final(run: RunFolder) -> str:
    model = Checkpoint.load(run.checkpoints).model
    return digest(model.shared, *model.blocks).hex()


@pytest.mark.parametrize(
    "more",
    [
        pytest.param((), id="as given"),
        pytest.param(("noise.partition=equi-information",), id="refitted edges", marks=pytest.mark.slow),
        pytest.param(("evaluation.noise_multiplier=30",), id="judged by companies"),
    ],
)
def test_a_cell_that_starts_from_what_is_shared_gives_the_bits_of_a_run_by_itself(
    more: tuple[str, ...], private_file: Path, tmp_path: Path
) -> None:
    """Would catch a shared public model, cut or deal of the data that is not the cell's own, noise that depends on
    the sweep, and a row that is not what the run's own files say."""
    first, second, *_ = grid(private_file, "privacy.epsilon=3,8", more=more).cells
    assert digest_of(first.settings) == digest_of(second.settings)
    started = start(tmp_path / "shared" / "a", first).path
    assert start(started, second).path == started
    shares: list[float] = []
    row = run_cell(
        second, Folders(started=started, run=tmp_path / second.name), audit=False, on_share=shares.append
    )
    own = prepare(second.settings, tmp_path / "own")
    result = simulate(own)
    assert row.model_digest == final(own) == final(RunFolder(tmp_path / second.name))
    assert (row.quality, row.epsilon_spent) == (result["accuracy"], max(result["epsilon"].values()))
    assert row.quality_public_model == result["accuracy_public_model"]
    assert own.plan().changed(run=second.name) == RunFolder(tmp_path / second.name).plan()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    again = run_cell(second, Folders(started=started, run=tmp_path / second.name), audit=False)
    same = {"seconds": 0.0, "cpu_seconds": 0.0, "peak_mib": None}
    assert replace(again, **same) == replace(row, **same)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("over", "shared"),
    [
        ("privacy.epsilon=3,none", True), ("training.rounds=3,4", True), ("companies.dropout.rate=0.0,0.1", True),
        ("model.hidden_size=16,32", False), ("companies.alpha=0.5,1.0", False), ("pretraining.steps=2,3", False),
        ("companies.holdout=0.2,0.3", False), ("noise.P_mean=1.0,2.0", False),
        ("evaluation.noise_multiplier=20,30", True),
    ],
)  # fmt: skip
def test_what_is_shared_depends_on_all_that_decides_it(over: str, shared: bool, private_file: Path) -> None:
    """Would catch a public model or homes of other settings, and pretraining that is repeated for nothing."""
    first, second, *_ = grid(private_file, over).cells
    assert (digest_of(first.settings) == digest_of(second.settings)) == shared


def test_a_seed_shares_nothing(private_file: Path) -> None:
    """Would catch seeds that differ in noise alone: their interval would be too narrow."""
    first, second = (c for c in grid(private_file, seeds=2).cells if c.kind == "run")
    assert digest_of(first.settings) != digest_of(second.settings)


def test_one_company_in_one_place_is_its_own_federation(private_file: Path, tmp_path: Path) -> None:
    """An oracle: one step of all examples, unclipped, is Adam's first step along the sign of their mean gradient.

    Would catch a baseline with noise, another divisor, or one that trains what the run does not."""
    more = ("training.sampling_rate=1.0", "training.rounds=1", "privacy.max_grad_norm=1e5")
    cell = grid(private_file, "privacy.epsilon=none", more=more).cells[0]
    started = start(tmp_path / "shared" / "a", cell)
    model = public_model(started)
    before = {name: p.clone() for name, p in model.named_parameters()}
    data = Examples.load(started.homes()[0] / "data.npz")
    plan = make_plan(cell.settings, model, "x")
    train_in_one_place(model, data, plan, companies=1, randomness=Randomness.from_seed(0))
    rate = plan.training.server_learning_rate
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(name.startswith("blocks.0.") for name in moved)
    steps = torch.cat([(p - before[name]).flatten() for name, p in model.named_parameters() if name in moved])
    steps = steps[steps != 0]
    assert (steps.abs() < rate * 1.001).all()
    assert (steps.abs() > rate * 0.9).float().mean() > 0.9  # where the gradient is not tiny beside Adam's eps


def test_baselines_judge_on_the_runs_own_held_out_examples(private_file: Path, tmp_path: Path) -> None:
    """Would catch a baseline that is judged on other examples, or on another start, than the run beside it."""
    cells = grid(private_file, "privacy.epsilon=none").cells
    started = start(tmp_path / "shared" / "a", cells[0]).path
    rows = {}
    for cell in cells:
        assert isinstance(cell, Cell)
        rows[cell.kind] = run_cell(cell, Folders(started=started, run=tmp_path / cell.name), audit=False)
    assert len({row.quality_public_model for row in rows.values()}) == 1
    alone = rows["alone"]
    evaluation = RunFolder(started).evaluation
    common = Examples.load(evaluation / "heldout.npz")
    own = [Examples.load(evaluation / "companies" / f"company-{i}.npz") for i in range(5)]
    assert sum(map(len, own)) == len(common)
    assert digest({"a": torch.cat([part.inputs for part in own])}) == digest({"a": common.inputs})
    model, _ = model_of_run(tmp_path / rows["run"].cell)
    for i, part in enumerate(own):
        for kind in ("run", "pooled", "alone"):
            hits = rows[kind].by_company[f"company-{i}"] * len(part)
            assert hits == pytest.approx(round(hits))  # a share of these very examples
        found = model.chain_quality(part.inputs, part.targets, torch.Generator().manual_seed(0))[-1]
        assert rows["run"].by_company[f"company-{i}"] == found
    assert sorted(alone.by_company) == [f"company-{i}" for i in range(5)]
    assert len({tuple(row.by_company_public.items()) for row in rows.values()}) == 1
    weighted = sum(rows["run"].by_company[f"company-{i}"] * len(part) for i, part in enumerate(own)) / len(
        common
    )
    assert rows["run"].quality == pytest.approx(
        weighted, abs=0.15
    )  # the chain draws other noise for other batches
    assert not (tmp_path / rows["pooled"].cell).exists()
