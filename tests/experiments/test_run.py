"""Whole runs: the sum is the companies' own updates, dropouts, exact resume, what a crash may cost."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.commands import run_code

from fedblocks.blocks import build_model, digest, merge
from fedblocks.blocks.state import flatten
from fedblocks.client.app import app, release_labels
from fedblocks.client.company import Company
from fedblocks.client.policy import load_policy
from fedblocks.client.training import train_block
from fedblocks.errors import InputError, ProtocolError
from fedblocks.experiments.simulation.dropout import Losses
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.reference import prepare_reference
from fedblocks.experiments.simulation.simulate import epsilon_by_company, simulate
from fedblocks.privacy.accounting import epsilon
from fedblocks.privacy.composition import run_epsilon
from fedblocks.privacy.events import EpochGaussian
from fedblocks.privacy.secure_aggregation import Identity
from fedblocks.protocol.identity import save_roster
from fedblocks.protocol.release import block_size, codec, mechanism
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.coordinator import coordinate
from fedblocks.server.events import Event, RoundFinished
from fedblocks.server.grid import InProcessGrid
from fedblocks.server.optimizer import BlockOptimizer
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import DropoutSettings, SimulationSettings, TrainingSettings, validated


def final_digest(run: RunFolder) -> bytes:
    model = Checkpoint.load(run.checkpoints).model
    return digest(model.shared, *model.blocks)


def update_norm(run: RunFolder) -> float:
    return float(run.metrics()[-1]["tasks"][0]["update_norm"])


def with_dropout(settings: SimulationSettings, rate: float, phase: str, seed: int = 0) -> SimulationSettings:
    companies = settings.companies.model_copy(
        update={"dropout": DropoutSettings(rate=rate, phase=phase)}  # type: ignore[arg-type]
    )
    return settings.model_copy(update={"companies": companies, "seed": seed})


@pytest.fixture(scope="module")
def finished(
    small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, dict[str, Any]]:
    run = prepare(small, tmp_path_factory.mktemp("whole") / "run")
    return run, simulate(run)


def test_the_summary_has_what_machines_ask_for(finished: tuple[RunFolder, dict[str, Any]]) -> None:
    run, result = finished
    assert {"accuracy_public_model", "accuracy", "epsilon", "rounds", "seconds"} <= result.keys()
    assert result["rounds"] == 4
    assert sorted(result["epsilon"]) == [f"company-{i}" for i in range(5)]
    assert [row["round"] for row in run.metrics()] == [0, 1, 2, 3, 4]
    assert [[t["block"] for t in row["tasks"]] for row in run.metrics()[1:]] == [[0], [1], [0], [1]]
    assert all(row["status"] == "done" for row in run.metrics()[1:])


def size_of(run: RunFolder) -> int:
    """Values in a block's update."""
    plan = run.plan()
    return block_size(build_model(plan.model, plan.noise, 0), 0, plan.training)


def test_epsilon_is_that_of_all_releases_and_stays_under_the_ceiling(
    finished: tuple[RunFolder, dict[str, Any]],
) -> None:
    """Oracle: the whole plan accounted at once, a little above what the list of releases alone would cost."""
    run, result = finished
    home = run.companies / "company-2"
    with Company(home, load_policy(home / "policy.toml")).ledger() as ledger:
        rows = ledger.rows()
    assert len(rows) == 4
    events = [row.event for row in rows]
    expected = run_epsilon(events[0].times(4), run.plan().delta)
    assert result["epsilon"]["company-2"] == pytest.approx(expected)
    assert 7.95 < expected <= 8.0
    assert expected / 1.005 < epsilon(events, run.plan().delta) < expected
    # What floating point may tell hangs on the number of values: the event must say it.
    assert events[0].values == events[0].steps * size_of(run)


def test_the_opened_sum_moves_the_block_by_the_mean_of_the_companies_own_updates(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Oracle: each update computed alone. Would catch masks that do not cancel, or a wrong divisor."""
    run = prepare(small, tmp_path / "run")
    settings, plan = run.settings(), run.plan()
    start = Checkpoint.load(run.checkpoints).model
    updates = []
    for home in sorted(run.companies.iterdir()):
        company = Company(home, load_policy(home / "policy.toml"))
        model = build_model(plan.model, plan.noise)
        merge(model, start.shared, *start.blocks)
        session = SimpleNamespace(round=1, label="block-0", cohort=range(5))
        digests = digest(start.blocks[0]), digest(start.shared)
        labels = release_labels(plan, session, *digests, company.data().digest, company.policy)  # type: ignore[arg-type]
        residues = train_block(
            model, 0, company.data(), plan, 5, company.randomness(*labels)[1], company.policy
        )
        updates.append(codec(plan, 5).decode_sum(residues))
    names = [f"blocks.0.{name}" for name in build_model(plan.model, plan.noise).trainable(0, False)]
    before = flatten([start.blocks[0][name] for name in names])
    optimizer = BlockOptimizer(plan.training, len(before))
    mean = torch.from_numpy(np.mean(updates, axis=0))
    expected = optimizer.step(before, mean)

    class StopAfterOne(Exception):
        pass

    def stop(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round == 1:
            raise StopAfterOne

    grid = InProcessGrid(app, settings.companies.count, {"run-dir": str(run.path)})
    with pytest.raises(StopAfterOne):
        coordinate(grid, run, [stop])
    after = Checkpoint.load(run.checkpoints, 1).model
    found = flatten([after.blocks[0][name] for name in names])
    # Noise lies on a grid, so a mean can be exactly 0; Adam's first step would magnify what rounding makes of it.
    clear = mean.abs() > 1e-6
    assert clear.float().mean() > 0.99
    torch.testing.assert_close(found[clear], expected[clear], rtol=0, atol=2e-5)
    assert (found - before).abs().max() > 1e-4
    assert digest(after.blocks[1]) == digest(start.blocks[1])
    assert digest(after.shared) == digest(start.shared)


@pytest.mark.parametrize("stop_at", [0, 1, 3])
def test_an_interrupted_run_resumes_to_the_same_result(
    finished: tuple[RunFolder, dict[str, Any]], small: SimulationSettings, tmp_path: Path, stop_at: int
) -> None:
    """Would catch lost optimiser state, repeated randomness, doubled metrics or a double charge."""
    run = prepare(small, tmp_path / "run")

    def interrupt(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(run, [interrupt])
    resumed = simulate(RunFolder.existing(run.path))
    whole, result = finished
    assert final_digest(run) == final_digest(whole)
    assert resumed["accuracy"] == result["accuracy"]
    assert resumed["epsilon"] == result["epsilon"]
    drop = {"seconds"}
    assert [{k: v for k, v in row.items() if k not in drop} for row in run.metrics()] == [
        {k: v for k, v in row.items() if k not in drop} for row in whole.metrics()
    ]


# Where a process kills itself: module and name of what is called for the nth time, and the round that is then saved.
MOMENTS = {
    "charged, not trained": ("client.app", "train_block", 8, 1),
    "summed, no metrics": ("server.run_folder", "RunFolder.append_metrics", 3, 1),
    "metrics, no checkpoint": ("server.checkpoint", "Checkpoint.save", 3, 2),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_resumes_to_the_same_result_and_the_ledger_never_under_counts(
    finished: tuple[RunFolder, dict[str, Any]], small: SimulationSettings, tmp_path: Path, moment: str
) -> None:
    """SIGKILL in a real process, at the moments between which something could be lost or done twice.

    Every training that has begun is on its company's ledger.
    """
    module, name, nth, saved = MOMENTS[moment]
    whole, result = finished
    run = prepare(small, tmp_path / "run")
    code = (
        "import importlib, os, signal, sys\n"
        "from pathlib import Path\n"
        "from fedblocks.server.run_folder import RunFolder\n"
        "from fedblocks.experiments.simulation.simulate import simulate\n"
        f"owner, *path, name = [importlib.import_module('fedblocks.{module}'), *{name.split('.')!r}]\n"
        "for part in path: owner = getattr(owner, part)\n"
        "original, calls = getattr(owner, name), []\n"
        "def counted(*given, **named):\n"
        "    calls.append(None)\n"
        f"    if len(calls) == {nth}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return original(*given, **named)\n"
        "setattr(owner, name, counted)\n"
        "simulate(RunFolder.existing(Path(sys.argv[1])))\n"
    )
    assert run_code(code, run.path).exit_code == -signal.SIGKILL
    assert Checkpoint.load(run.checkpoints).round == saved
    charged = []
    for home in run.companies.iterdir():
        with Company(home, load_policy(home / "policy.toml")).ledger() as ledger:
            charged.append(len(ledger.rows()))
    if moment == "charged, not trained":
        assert min(charged) >= 1
        assert sum(charged) >= nth
    else:
        assert charged == [len(run.metrics()) if moment == "summed, no metrics" else saved + 1] * 5
    assert simulate(run)["accuracy"] == result["accuracy"]
    assert final_digest(run) == final_digest(whole)
    assert epsilon_by_company(run) == result["epsilon"]
    assert [row["round"] for row in run.metrics()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("phase", ["keys", "train", "confirm", "unmask"])
def test_dropouts_are_survived_down_to_the_threshold_and_recorded(
    small: SimulationSettings, tmp_path: Path, phase: str
) -> None:
    """Five companies, threshold four: rounds that lose one go on, rounds that lose two are left out."""
    run = prepare(with_dropout(small, 0.25, phase, seed=4), tmp_path / "run")
    simulate(run)
    rows = run.metrics()[1:]
    assert any(row["absent"] for row in rows)
    for row in rows:
        lost = row["absent"]
        assert all(code == "no_reply" for _, code in lost.values())
        if phase in ("keys", "train"):
            assert (row["status"] == "done") == (len(lost) <= 1)
            assert len(row["survivors"]) == (5 - len(lost) if row["status"] == "done" else 0)
        elif row["status"] == "done":
            assert len(row["survivors"]) == 5  # their vectors had arrived
    if phase != "keys":  # whoever trained has paid, whether or not the reply arrived
        home = run.companies / "company-0"
        with Company(home, load_policy(home / "policy.toml")).ledger() as ledger:
            assert len(ledger.rows()) == 4


def test_an_aborted_round_leaves_the_block_as_it_was(small: SimulationSettings, tmp_path: Path) -> None:
    run = prepare(with_dropout(small, 0.9, "train"), tmp_path / "run")
    before = final_digest(run)
    simulate(run)
    assert all(row["status"] == "too_few" for row in run.metrics()[1:])
    assert final_digest(run) == before


def test_losses_depend_on_seed_round_and_node_alone() -> None:
    lossy = Losses(DropoutSettings(rate=0.3, phase="train"), seed=1)
    draws = [lossy.is_lost("train.block", f"round-{r}", n) for r in range(200) for n in range(10)]
    assert np.mean(draws) == pytest.approx(0.3, abs=0.05)
    assert draws == [lossy.is_lost("train.block", f"round-{r}", n) for r in range(200) for n in range(10)]
    assert not any(lossy.is_lost("query.keys", f"round-{r}", 1) for r in range(50))


def test_a_plan_that_a_company_cannot_afford_stops_before_round_one(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a refusal that comes only when the budget is already spent."""
    run = prepare(small, tmp_path / "run")
    policy = run.companies / "company-3" / "policy.toml"
    policy.write_text(policy.read_text().replace("epsilon_ceiling = 8.0", "epsilon_ceiling = 7.0"))
    assert epsilon([mechanism(run.plan()).event()], run.plan().delta) < 7.0  # one round alone would fit
    with pytest.raises(ProtocolError, match="privacy"):
        simulate(run)
    assert set(epsilon_by_company(run).values()) == {0.0}


@pytest.mark.parametrize("name", ["company-3", "stranger"])
def test_a_company_that_is_not_on_the_coordinators_roster_stops_the_run(
    small: SimulationSettings, tmp_path: Path, name: str
) -> None:
    """Its key replaced, or its name missing: noticed at join, before anything is spent."""
    run = prepare(small, tmp_path / "run")
    members = {k: v for k, v in run.roster().members.items() if k != "company-3"}
    save_roster(run.roster_file, members | {name: Identity.generate().public})
    with pytest.raises(ProtocolError, match=r"roster_differs: .*company-3"):
        simulate(run)
    assert set(epsilon_by_company(run).values()) == {0.0}


def test_noise_that_the_epsilon_does_not_pay_for_is_refused_before_anything_is_written(
    small: SimulationSettings, tmp_path: Path
) -> None:
    privacy = small.privacy.model_copy(update={"noise_multiplier": 0.7})
    with pytest.raises(InputError, match="pays for"):
        prepare(small.model_copy(update={"privacy": privacy}), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_torn_last_line_of_metrics_does_not_stop_a_resume(
    small: SimulationSettings, tmp_path: Path
) -> None:
    run = prepare(small, tmp_path / "run")

    def interrupt(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(run, [interrupt])
    with run.metrics_file.open("a") as file:
        file.write('{"round": 3, "blo')
    assert simulate(run)["rounds_done"] == 4


def test_the_reference_differs_by_noise_alone(
    finished: tuple[RunFolder, dict[str, Any]],
) -> None:
    run, _ = finished
    twin = prepare_reference(run)
    simulate(twin)
    assert prepare_reference(run).path == twin.path
    ours, theirs = run.plan(), twin.plan()
    assert theirs.noise_multiplier == 0
    assert theirs.training == ours.training
    assert theirs.company_clip == ours.company_clip
    assert digest(Checkpoint.load(twin.checkpoints, 0).model.shared) == digest(
        Checkpoint.load(run.checkpoints, 0).model.shared
    )
    assert update_norm(twin) < update_norm(run)


def test_two_runs_of_the_same_settings_agree(
    finished: tuple[RunFolder, dict[str, Any]], small: SimulationSettings, tmp_path: Path
) -> None:
    run = prepare(small, tmp_path / "again")
    simulate(run)
    assert final_digest(run) == final_digest(finished[0])


def test_preparation_that_fails_leaves_nothing(small: SimulationSettings, tmp_path: Path) -> None:
    def fail(step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(small, tmp_path / "run", on_step=fail)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["fedavg", "fedadam"])
def test_server_optimisers_follow_their_closed_form_and_resume(kind: str) -> None:
    """Reddi et al. 2021, algorithm 2, written out; a copy restored from its state must go on alike."""
    settings = TrainingSettings(server_optimizer=kind, server_learning_rate=0.1)  # type: ignore[arg-type]
    optimizer, g = BlockOptimizer(settings, 5), torch.Generator().manual_seed(0)
    x, m, v = torch.zeros(5), torch.zeros(5), torch.zeros(5)
    b1, b2 = settings.server_betas
    position = torch.zeros(5)
    for t in range(1, 6):
        u = torch.randn(5, generator=g)
        if kind == "fedavg":
            x = x + 0.1 * u
        else:
            m, v = b1 * m + (1 - b1) * u, b2 * v + (1 - b2) * u * u
            x = x + 0.1 * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + 1e-8)
        restored = BlockOptimizer(settings, 5)
        restored.load(optimizer.state())
        position = restored.step(position, u)
        optimizer = restored
        torch.testing.assert_close(position, x)


def test_a_run_by_epochs_with_correlated_noise_is_charged_as_such(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a plan by epochs that trains, or is charged, as if its batches were drawn by chance."""
    raw = small.model_dump(mode="json")
    raw["training"] |= {
        "batches": "epochs", "sampling_rate": 0.25, "local_steps": 8, "noise_bands": 3, "rounds": 2,
    }  # fmt: skip
    run = prepare(validated(SimulationSettings, raw), tmp_path / "run")
    assert simulate(run)["rounds_done"] == 2
    home = run.companies / "company-0"
    with Company(home, load_policy(home / "policy.toml")).ledger() as ledger:
        events = [row.event for row in ledger.rows()]
    noise = run.plan().noise_multiplier
    assert [replace(event, dimension=None) for event in events] == [
        EpochGaussian(noise_multiplier=noise, epochs=2)
    ] * 2
    # Three bands over four steps an epoch: see `BandedNoise.event`.
    assert events[0].values == 2 * 4 * (2 * 3) ** 2 * size_of(run)
