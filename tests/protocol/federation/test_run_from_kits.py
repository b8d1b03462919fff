"""From federation.toml to a finished run: keys made at home, requests, kits, and a process for each party."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.federation import COMPANIES, Federation

from fedblocks.experiments.bench.transport_flower import free_port
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings


def command(*words: str | Path, **more: Any) -> subprocess.Popen[str]:
    start = "import sys; from fedblocks.cli.main import main; sys.argv[0] = 'fedblocks'; main()"
    return subprocess.Popen(
        [sys.executable, "-c", start, *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ, **more,
    )  # fmt: skip


def told(*words: str | Path) -> dict[str, Any]:
    """What a command that succeeds says in JSON."""
    process = command(*words, "--json")
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.fixture
def run(small: SimulationSettings, tmp_path: Path) -> RunFolder:
    """A run of two rounds, for three companies whose homes get names, data, rules and ledgers, and no keys."""
    changes: dict[str, Any] = {
        "companies": small.companies.model_copy(update={"count": 3}),
        "training": small.training.model_copy(update={"rounds": 2}),
    }
    prepared = prepare(small.model_copy(update=changes), tmp_path / "run")
    return prepared


def moved_in(run: RunFolder, federation: Federation) -> None:
    """Rules, data and ledgers of the simulated companies go to the homes of the real ones; no key does."""
    for i, name in enumerate(COMPANIES):
        old, home = run.companies / f"company-{i}", federation.home(name)
        home.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(old / "data.npz", home)
        policy = old.joinpath("policy.toml").read_text().replace(f'"company-{i}"', f'"{name}"')
        kept = [line for line in policy.splitlines() if not line.startswith("simulation_seed")]
        (home / "policy.toml").write_text("\n".join(kept))
        (home / "policy.toml").chmod(0o600)
        told("ledger", "create", home)
    shutil.rmtree(run.companies)
    (run.path / "roster.toml").unlink()


@pytest.mark.slow
def test_three_companies_finish_a_run_with_keys_made_at_home(run: RunFolder, tmp_path: Path) -> None:
    """By commands alone; would catch a file that a kit lacks, or that the agent or coordinator reads elsewhere."""
    federation = Federation.at(tmp_path, port=free_port())
    moved_in(run, federation)
    requests, prints = federation.office / "requests", {}
    for name in COMPANIES:
        asked = told("company", "request", federation.home(name), "--company", name)
        prints[name] = asked["fingerprint"]
        shutil.copy(asked["request"], requests)
    asked = told("coordinator", "request", federation.plane, "--host", "127.0.0.1")
    shutil.copy(asked["request"], requests)
    made = told("provision", federation.file)
    assert {name: made["fingerprints"]["requests"][name] for name in COMPANIES} == prints
    assert made["keys_made_here"] == []
    spoken = made["fingerprints"]["provisioner"]
    for name in COMPANIES:
        done = told("company", "install", made["kits"][name], federation.home(name), "--fingerprint", spoken)
        assert done["keys"] == "own"
    told("coordinator", "install", made["kits"]["coordinator"], federation.plane, "--fingerprint", spoken)
    shutil.copy(federation.plane / "roster.toml", run.path)

    serve = command("transport", "serve", run.path, federation.plane, "--json")
    agents = [command("transport", "agent", federation.home(name), "--json") for name in COMPANIES]
    try:
        out, said = serve.communicate(timeout=180)
        assert serve.returncode == 0, said
        ends = [json.loads(agent.communicate(timeout=60)[0]) for agent in agents]
    finally:
        for process in (serve, *agents):
            process.kill()
            process.wait()
    assert json.loads(out.splitlines()[-1])["rounds_done"] == 2
    assert [(end["company"], end["ended"]) for end in ends] == [(name, "done") for name in COMPANIES]
    assert run.metrics()[-1]["survivors"] == list(COMPANIES)
