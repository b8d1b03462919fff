"""From federation.toml to a finished run: keys made at home, requests, kits, and a process for each party."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.federation import COMPANIES, Federation
from support.kit_processes import command, ended, prepared, told

from fedblocks.experiments.bench.transport_flower import free_port
from fedblocks.settings import SimulationSettings


@pytest.mark.slow
def test_three_companies_finish_a_run_with_keys_made_at_home(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """By commands alone; would catch a file that a kit lacks, or that the agent or coordinator reads elsewhere."""
    federation = Federation.at(tmp_path, port=free_port())
    run = prepared(small, tmp_path / "run", federation)
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
        ended(serve, *agents)
    assert json.loads(out.splitlines()[-1])["rounds_done"] == 2
    assert [(end["company"], end["ended"]) for end in ends] == [(name, "done") for name in COMPANIES]
    assert run.metrics()[-1]["survivors"] == list(COMPANIES)
