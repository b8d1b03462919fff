"""A SuperLink with TLS and node authentication, and companies' SuperNodes, from the files that kits leave behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.federation import Federation
from support.kit_processes import prepared

from fedblocks.experiments.bench.transport_flower import flower_env, free_port
from fedblocks.settings import SimulationSettings


def listed(env: dict[str, str], folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["flwr", "supernode", "list", "here", "--format", "json"],
        env=env, cwd=folder, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    nodes: list[dict[str, Any]] = json.loads(done.stdout[done.stdout.index("{") :])["nodes"]
    return nodes


@pytest.mark.slow
def test_a_registered_company_comes_online_and_no_other(small: SimulationSettings, tmp_path: Path) -> None:
    """Flower checks host and certificate, and the node's key; would catch a certificate or key that it cannot use."""
    port, plane_port = free_port(), free_port()
    tmp_path.chmod(0o755)
    federation = Federation.at(tmp_path, port=plane_port, more=f"superlink_port = {port}\n")
    prepared(small, tmp_path / "run", federation)
    federation.provision(trial=True)
    federation.all_installed()
    plane, home = federation.plane, tmp_path / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{plane / "own.pem"}"\n'
    )
    env, processes = flower_env(home), []
    certificate = ["--ssl-certfile", plane / "own.pem", "--ssl-keyfile", plane / "own.key"]
    link = ["flower-superlink", "--host", "127.0.0.1", "--port", str(port), *map(str, certificate)]
    link += ["--ssl-ca-certfile", str(plane / "own.pem"), "--enable-supernode-auth"]
    start = "import sys; from fedblocks.cli.main import main; sys.argv[0] = 'fedblocks'; main()"

    def started(name: str, *words: str | Path) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{name}.log").open("wb") as file:
            process = subprocess.Popen(
                list(map(str, words)), env=env, cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT
            )
        processes.append(process)
        return process

    def until(holds: Any, seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, "\n".join(p.read_text() for p in tmp_path.glob("*.log"))[
                -3000:
            ]
            time.sleep(1.0)

    try:
        started("link", *link)
        until(lambda: "Uvicorn running" in (tmp_path / "link.log").read_text())
        subprocess.run(
            ["flwr", "supernode", "register", str(plane / "flower/acme.pub"), "here", "--name", "acme"],
            env=env, cwd=tmp_path, capture_output=True, timeout=60, check=True,
        )  # fmt: skip
        nodes = {}
        for name in ("acme", "bravo"):
            company = federation.home(name)
            nodes[name] = started(
                name, sys.executable, "-c", start, "supernode", company, "--superlink", f"127.0.0.1:{port}",
                "--root-certificates", company / "transport/coordinator.pem",
                "--auth-supernode-private-key", company / "transport/node.key", "--port", str(free_port()),
            )  # fmt: skip
        until(lambda: [node["status"] for node in listed(env, tmp_path)] == ["online"])
        until(
            lambda: nodes["bravo"].poll() is not None, 200
        )  # it waits as if it had been killed a moment ago
        assert nodes["acme"].poll() is None
        assert len(listed(env, tmp_path)) == 1
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
