"""The presets of pretrained models with their own models and data, short: run, audit, report, export, agents."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FEDBLOCKS = Path(sys.executable).with_name("fedblocks")
PRESETS = ("minilm-text", "llama-text", "vit-hf-digits")
SHORT = (
    "training.rounds=2", "training.evaluate_every=2", "pretraining.steps=5", "data.test_examples=50",
)  # fmt: skip


def fedblocks(*words: str, at: Path, expected: tuple[int, ...] = (0,)) -> Any:
    """What the command prints with --json, where it ends with one of the exit codes `expected`."""
    done = subprocess.run(
        [FEDBLOCKS, *words, "--json"],
        cwd=at, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in expected, done.stderr[-2000:]
    return json.loads(done.stdout)


def changes() -> list[str]:
    return [word for change in SHORT for word in ("--set", change)]


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_is_simulated_audited_reported_and_handed_back(preset: str, tmp_path: Path) -> None:
    """Would catch a command that a preset's model or data bring down."""
    done = fedblocks("simulate", preset, *changes(), at=tmp_path)
    run = done["folder"]
    assert (done["rounds_done"], done["rounds_failed"], done["refusals"]) == (2, {}, {})
    assert all(0 < epsilon <= 8 for epsilon in done["epsilon"].values())
    # Two minutes are too few for some attacks: inconclusive (4) on a slow machine, but nothing is refuted.
    fedblocks("audit", run, "--minutes", "2", at=tmp_path, expected=(0, 4))
    fedblocks("report", run, at=tmp_path)
    page = next(Path(run).rglob("*.html")).read_text("utf-8")
    assert "Representation kept" in page
    fedblocks("model", "export", run, "--to", "out", at=tmp_path)
    assert (tmp_path / "out/README.md").is_file()
    assert list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_it_runs_at_companies_through_their_agents(preset: str, tmp_path: Path) -> None:
    """Would catch data that no company can be dealt, and rules that refuse the preset."""
    names = ("acme", "bravo", "charlie")
    done = fedblocks("trial", "pilot", *names, "--preset", preset, *changes(), "--yes", at=tmp_path)
    assert (done["rounds"], done["rounds_done"]) == (2, 2)
    assert all(0 < done["companies"][name]["epsilon"] <= 8 for name in names)
