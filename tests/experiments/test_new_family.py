"""A model family is one file and one preset: another one, put into a copy of the package, runs everywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedblocks

PACKAGE = Path(fedblocks.__file__).parent
TESTS = Path(__file__).parents[1]
NEW = TESTS / "support" / "new_family"

Outcome = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """Runs Python on a copy of the package to which the family's file and its preset were added."""
    site = tmp_path_factory.mktemp("site")
    kept = (".py", ".toml", ".j2", ".css", ".md", ".typed")

    def others(folder: str, names: list[str]) -> list[str]:
        place = Path(folder)
        hidden = {"tests", "docs", "build", "runs", "__pycache__"}
        return [
            name
            for name in names
            if name in hidden or name.startswith(".") or not ((place / name).is_dir() or name.endswith(kept))
        ]

    shutil.copytree(PACKAGE, site / "fedblocks", ignore=others)
    shutil.copy(NEW / "whole_image.py", site / "fedblocks" / "blocks" / "families")
    shutil.copy(NEW / "whole-image-digits.toml", site / "fedblocks" / "experiments" / "presets")

    def run(*words: str) -> Outcome:
        env = os.environ | {"PYTHONPATH": str(site)}
        return subprocess.run(
            [sys.executable, *words], cwd=site, env=env, capture_output=True, text=True, timeout=240
        )

    return run


def fedblocks_json(done: Outcome) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


@pytest.mark.slow
def test_a_new_family_is_simulated_audited_and_reported(
    copied: Callable[..., Outcome],
) -> None:
    """Would catch a second place that has to know the families: settings, data, dealing, policy, report, audit."""

    def command(*words: str) -> Outcome:
        return copied("-c", "from fedblocks.cli.main import main; main()", *words)

    assert "whole-image-digits" in command("presets").stdout
    simulated = fedblocks_json(command("simulate", "whole-image-digits", "--json"))
    run = simulated["folder"]
    rounds = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("status") for row in rounds] == [None, "done", "done"]

    audited = command("audit", run, "--minutes", "0.2", "--adversary", "auditor", "--block", "0", "--json")
    assert audited.returncode in (0, 4), (
        audited.stderr
    )  # nothing refuted; in so short a time perhaps nothing said
    assert json.loads(audited.stdout)["run"] == Path(run).name

    assert command("report", run).returncode == 0
    page = (Path(run) / "report.html").read_text("utf-8")
    assert "whole-image classifier" in page
    assert "share of hits" in page.lower()
    assert "8 × 8 images in 10 classes" in page


def test_the_checks_of_every_family_take_the_new_one(copied: Callable[..., Outcome]) -> None:
    """Would catch checks that know their families by a list of their own, so that a new one goes unchecked."""
    checks = (Path(__file__).with_name("test_sensitivity.py"), TESTS / "blocks" / "test_every_family.py")
    done = copied("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "whole-image", *map(str, checks))
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
