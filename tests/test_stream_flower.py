"""A real SuperLink and SuperNodes: Flower starts the run with one message a company, the data plane carries it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fedblocks
from fedblocks.client.transport import OwnCertificate
from fedblocks.client.transport.certificates import COORDINATOR
from fedblocks.config import Settings
from fedblocks.experiments.bench.transport_flower import flower_env, free_port, superlink
from fedblocks.experiments.preparation import prepare
from fedblocks.server.checkpoint import Checkpoint

pytestmark = pytest.mark.slow
ROOT = Path(fedblocks.__file__).parent


@pytest.mark.skipif(" " in sys.prefix, reason="Flower's SuperLink cannot start from a path with a space")
def test_a_run_on_a_superlink_takes_the_data_plane(small: Settings, tmp_path: Path) -> None:
    companies = small.companies.model_copy(update={"count": 3})
    run = prepare(small.model_copy(update={"companies": companies}), tmp_path / "run")
    plane, link, port = tmp_path / "plane", free_port(), free_port()
    coordinator, homes = OwnCertificate.create(COORDINATOR), sorted(run.companies.iterdir())
    coordinator.save(plane)
    (plane / "transport.toml").write_text(f'listen = "127.0.0.1:{port}"\n')
    (plane / "companies").mkdir()
    for home in homes:
        own, folder = OwnCertificate.create(home.name), home / "transport"
        own.save(folder)
        (plane / "companies" / f"{home.name}.pem").write_bytes(own.certificate)
        (folder / "coordinator.pem").write_bytes(coordinator.certificate)
        (folder / "transport.toml").write_text(f'address = "127.0.0.1:{port}"\n')
        policy = home / "policy.toml"
        kept = [line for line in policy.read_text().splitlines() if not line.startswith("simulation_seed")]
        policy.write_text("\n".join(kept))
    flower = tmp_path / "flwr"
    flower.mkdir()
    (flower / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    env = flower_env(flower)
    with superlink(link, len(homes), env, tmp_path, lambda i: f'company-home="{homes[i]}"'):
        command = [
            "flwr", "run", str(ROOT), "here", "--stream",
            "--run-config", f'run-dir="{run.path}" data-plane="{plane}"',
        ]  # fmt: skip
        done = subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
        )
    assert Checkpoint.load(run.checkpoints).round == 4, done.stdout[-3000:] + done.stderr[-1000:]
    assert all(row["status"] == "done" for row in run.metrics()[1:])
    for home in homes:
        assert "data plane: done" in (home / "company.log").read_text()
    print(*(row["seconds"] for row in run.metrics()[1:]))
