"""Commands in processes of their own, and a prepared run whose companies have rules and data but no keys yet."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from fedblocks.client.company import Company
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings
from support.federation import COMPANIES, Federation


def command(*words: str | Path) -> subprocess.Popen[str]:
    start = "import sys; from fedblocks.cli.main import main; sys.argv[0] = 'fedblocks'; main()"
    return subprocess.Popen(
        [sys.executable, "-c", start, *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip


def told(*words: str | Path) -> dict[str, Any]:
    """What a command that succeeds says in JSON."""
    process = command(*words, "--json")
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def prepared(small: SimulationSettings, path: Path, federation: Federation) -> RunFolder:
    """A run of two rounds. Rules and data of its simulated companies go to the homes of real ones; no key does."""
    changes: dict[str, Any] = {
        "companies": small.companies.model_copy(update={"count": 3}),
        "training": small.training.model_copy(update={"rounds": 2}),
    }
    run = prepare(small.model_copy(update=changes), path)
    for i, name in enumerate(COMPANIES):
        old, home = run.companies / f"company-{i}", federation.home(name)
        home.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(old / "data.npz", home)
        policy = old.joinpath("policy.toml").read_text().replace(f'"company-{i}"', f'"{name}"')
        kept = [line for line in policy.splitlines() if not line.startswith("simulation_seed")]
        (home / "policy.toml").write_text("\n".join(kept))
        (home / "policy.toml").chmod(0o600)
        Company.deployed(home).create_ledger()
    shutil.rmtree(run.companies)
    (run.path / "roster.toml").unlink()
    return run


def ended(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.wait()
