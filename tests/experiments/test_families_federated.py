"""Every family through the same federation: preset, public model, private rounds, diagnoses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.presets import quick_settings

from fedblocks.blocks import build_model, digest
from fedblocks.blocks.build import metric_of
from fedblocks.experiments.presets import load_settings, preset_names
from fedblocks.experiments.simulation.diagnosing import diagnose_run
from fedblocks.experiments.simulation.preparation import prepare, read_inputs
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.threat_model.report import write_report

# The presets whose data every installation has.
SMALL = ("digits", "dit-digits", "ar-text", "masked-text", "recurrent-text", "forecast-series")
TINY = (
    "model.hidden_size=16", "model.heads=2", "pretraining.steps=2", "training.rounds=2",
    "training.sampling_rate=0.02", "training.expected_batch_size=20", "training.noise_draws=1",
    "training.evaluate_every=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stretch of the text that every Python ships, small enough for a test."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "topics.txt"
    path.write_text("\n".join(topics[key] for key in sorted(topics))[:12_000])
    return path


def settings_of(preset: str, text: Path, *more: str) -> Any:
    one_block = preset == "recurrent-text"
    cut = ("model.layers=4",) if one_block else ("model.layers=2", "model.blocks=2")
    short = (
        ("model.sequence_length=16", f"data.public.source={text}", f"data.private.source={text}")
        if preset.endswith("-text")
        else ()
    )
    return load_settings(preset, [*TINY, *cut, *short, *more])


def test_every_family_has_a_preset_that_runs_anywhere() -> None:
    families = {load_settings(name).model.family for name in SMALL}
    assert families == {"vit", "dit", "ar-lm", "masked-lm", "recurrent-lm", "forecaster"}
    assert set(SMALL) <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_private_unless_it_says_so(name: str) -> None:
    """Would catch a preset that no longer loads, or that drops privacy without a word."""
    settings = quick_settings(name)
    assert settings.privacy.epsilon is not None or settings.privacy.i_accept_no_dp
    assert 4 <= settings.companies.count <= 8


@pytest.mark.parametrize("preset", [name for name in SMALL if name != "digits"])
@pytest.mark.parametrize(
    "private",
    [pytest.param(True, id="private"), pytest.param(False, id="non-private", marks=pytest.mark.slow)],
)
def test_a_family_runs_from_preset_to_report(preset: str, private: bool, text: Path, tmp_path: Path) -> None:
    """Would catch a family that trains but cannot be accounted, evaluated, diagnosed or reported."""
    open_ = () if private else ("privacy.epsilon=none", "privacy.i_accept_no_dp=true")
    settings = settings_of(preset, text, *open_)
    run = prepare(settings, tmp_path / "run")
    result = simulate(run)
    assert result["rounds_done"] == 2
    assert result["metric"] == metric_of(settings.model).name
    assert len(result[f"{result['metric']}_by_block"]) == settings.model.blocks
    assert all(0 < spent <= 8 if private else spent is None for spent in result["epsilon"].values())
    assert len(result["epsilon"]) == settings.companies.count
    before, after = (Checkpoint.load(run.checkpoints, r).model for r in (0, 2))
    trained = {(r - 1) % settings.model.blocks for r in (1, 2)}
    for b in range(settings.model.blocks):
        assert (digest(before.blocks[b]) != digest(after.blocks[b])) == (b in trained)
    found = diagnose_run(run)
    assert len(found["heldout"]) == settings.model.blocks
    json.dumps(found)
    assert write_report(run).is_file()


def test_held_out_windows_of_a_series_come_after_all_training_windows() -> None:
    """Would catch held-out futures that stand in the past of a training window."""
    settings = load_settings("forecast-series")
    inputs = read_inputs(settings)
    windows = len(inputs.heldout) // settings.companies.count
    futures = inputs.heldout.targets[:windows].flatten(1)  # of the first company
    size = futures.shape[1]
    pasts = inputs.companies["company-0"].inputs.flatten(1).unfold(1, size, size)  # (N, pieces, horizon)
    # Each window is normalised by its own context: compare shapes, not values.
    shapes = (pasts - pasts.mean(-1, keepdim=True)) / pasts.std(-1, keepdim=True).clamp_min(1e-6)
    wanted = (futures - futures.mean(1, keepdim=True)) / futures.std(1, keepdim=True).clamp_min(1e-6)
    nearest = torch.cdist(wanted, shapes.flatten(0, 1)).min(dim=1).values
    assert float(nearest.min()) > 1e-2


def test_an_informed_cut_is_refitted_in_pretraining_and_offered_to_the_companies(tmp_path: Path) -> None:
    """Would catch companies that train on another cut than the one the public model ended with."""
    settings = settings_of(
        "dit-digits", tmp_path, "noise.partition=equi-information", "noise.refit_every=10",
        "pretraining.steps=20", "pretraining.batch_size=64",
    )  # fmt: skip
    run = prepare(settings, tmp_path / "run")
    edges = run.plan().noise.edges
    assert edges is not None
    even = build_model(settings.model, settings.noise).partition
    assert edges[1] != pytest.approx(even.edges[1])
    assert (edges[0], edges[-1]) == (even.edges[0], even.edges[-1])
    assert build_model(run.plan().model, run.plan().noise).partition.edges == edges
