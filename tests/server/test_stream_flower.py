"""A real SuperLink and SuperNodes: Flower starts the run with one message a company, the data plane carries it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.deployed import guarded, without_seeds

import fedblocks
from fedblocks.experiments.bench.transport_flower import flower_run, free_port
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.protocol.transport import OwnCertificate
from fedblocks.protocol.transport.certificates import COORDINATOR
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.settings import SimulationSettings

pytestmark = pytest.mark.slow
ROOT = Path(fedblocks.__file__).parent


@pytest.mark.skipif(" " in sys.prefix, reason="Flower's SuperLink cannot start from a path with a space")
def test_a_run_on_a_superlink_takes_the_data_plane(small: SimulationSettings, tmp_path: Path) -> None:
    companies = small.companies.model_copy(update={"count": 3})
    run = prepare(small.model_copy(update={"companies": companies}), tmp_path / "run")
    plane, port = tmp_path / "plane", free_port()
    coordinator, homes = OwnCertificate.create(COORDINATOR), without_seeds(run)
    coordinator.save(plane)
    (plane / "transport.toml").write_text(f'listen = "127.0.0.1:{port}"\n')
    (plane / "companies").mkdir()
    for home in homes:
        own, folder = OwnCertificate.create(home.name), home / "transport"
        own.save(folder)
        (plane / "companies" / f"{home.name}.pem").write_bytes(own.certificate)
        (folder / "coordinator.pem").write_bytes(coordinator.certificate)
        (folder / "transport.toml").write_text(f'address = "127.0.0.1:{port}"\n')
    printed = flower_run(
        ROOT, list(map(guarded, homes)), f'run-dir="{run.path}" data-plane="{plane}"', tmp_path
    )
    assert Checkpoint.load(run.checkpoints).round == 4, printed
    assert all(row["status"] == "done" for row in run.metrics()[1:])
    for home in homes:
        assert "data plane: done" in (home / "company.log").read_text()
    print(*(row["seconds"] for row in run.metrics()[1:]))
