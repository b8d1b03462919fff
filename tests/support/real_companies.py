"""A run of four companies that the coordinator's folder knows nothing of but their roster, as real ones are."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

from fedblocks.experiments.bench.transport_flower import free_port
from fedblocks.protocol.transport import OwnCertificate
from fedblocks.protocol.transport.certificates import COORDINATOR
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import DropoutSettings, SimulationSettings
from fedblocks.settings.simulation import PrivateSource

NAMES = ["acme", "bolt", "cobalt", "delta"]


def named(small: SimulationSettings) -> SimulationSettings:
    """Four companies with names, of which some are missing from time to time in a simulation."""
    data = small.data.model_copy(
        update={"private": PrivateSource(sources=dict.fromkeys(NAMES, small.data.private.source))}
    )
    dropout = DropoutSettings(rate=0.1, phase="train")
    companies = small.companies.model_copy(update={"count": 4, "dropout": dropout})
    return small.model_copy(update={"data": data, "companies": companies, "seed": 3})


def coordinators_own(run: RunFolder, homes: Path) -> None:
    """Leave what a coordinator of real companies has of a run."""
    shutil.move(run.companies, homes)
    for name in ("simulation.toml", "result.json", "data.json", "evaluation/heldout.npz"):
        (run.path / name).unlink(missing_ok=True)
    shutil.rmtree(run.releases, ignore_errors=True)


def serve_companies(
    run: RunFolder, homes: Path, plane: Path, *, metrics: bool = False, lose_one: bool = True
) -> dict[str, list[str]]:
    """Run it to its end, a process a party, and lose the last company after round one.

    `metrics`: both sides show theirs; what the coordinator and the first company had shown by the end of round two.
    """
    port, own = free_port(), OwnCertificate.create(COORDINATOR)
    own.save(plane)
    (plane / "transport.toml").write_text(f'listen = "127.0.0.1:{port}"\ngather = 180.0\n')
    (plane / "companies").mkdir()
    for name in NAMES:
        theirs = OwnCertificate.create(name)
        theirs.save(homes / name / "transport")
        (plane / "companies" / f"{name}.pem").write_bytes(theirs.certificate)
        (homes / name / "transport" / "coordinator.pem").write_bytes(own.certificate)
        (homes / name / "transport" / "transport.toml").write_text(f'address = "127.0.0.1:{port}"\n')
        policy = homes / name / "policy.toml"
        kept = [line for line in policy.read_text().splitlines() if not line.startswith("simulation_seed")]
        policy.write_text("\n".join(kept))
    shown: dict[str, list[str]] = {}
    ports = {name: free_port() for name in ("serve", *NAMES)}
    watched = {
        name: ["--metrics", f"127.0.0.1:{number}"] if metrics else [] for name, number in ports.items()
    }
    serve = command("transport", "serve", run.path, plane, *watched["serve"])
    agents = [command("transport", "agent", homes / name, *watched[name]) for name in NAMES]
    try:
        assert serve.stderr is not None
        for line in serve.stderr:
            if line.startswith("round 1") and lose_one:
                agents[3].send_signal(signal.SIGKILL)
            if line.startswith("round 2"):
                for name in ("serve", NAMES[0]) if metrics else ():
                    address = f"http://127.0.0.1:{ports[name]}"
                    shown[name] = [
                        urlopen(f"{address}/{page}").read().decode() for page in ("metrics", "healthz")
                    ]
                break
        _, said = serve.communicate(timeout=240)
        assert serve.returncode == 0, said
    finally:
        for process in (serve, *agents):
            process.kill()
            process.wait()
    return shown


def command(*words: str | Path) -> subprocess.Popen[str]:
    start = "import sys; from fedblocks.cli.main import main; sys.argv[0] = 'fedblocks'; main()"
    return subprocess.Popen(
        [sys.executable, "-c", start, *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
