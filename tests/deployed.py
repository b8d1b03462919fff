"""Companies on SuperNodes of their own under a real SuperLink, as deployed: no seeds, homes named by their nodes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from fedblocks.experiments.bench.transport_flower import flower_env, free_port, superlink
from fedblocks.server.run_folder import RunFolder


def without_seeds(run: RunFolder) -> list[Path]:
    """The companies' homes, in which nothing may be guessed any more."""
    homes = sorted(run.companies.iterdir())
    for home in homes:
        policy = home / "policy.toml"
        kept = [line for line in policy.read_text().splitlines() if not line.startswith("simulation_seed")]
        policy.write_text("\n".join(kept))
    return homes


def guarded(home: Path) -> list[str]:
    """A company's SuperNode as the README has it."""
    return ["fedblocks", "supernode", str(home)]


def unguarded(home: Path) -> list[str]:
    """Flower's own, which runs whatever code it is sent."""
    return ["flower-supernode", "--node-config", f'company-home="{home}"']


def flower_run(project: Path, nodes: list[list[str]], config: str, folder: Path) -> str:
    """`flwr run` of the apps of `project`; returns what it printed. Flower's own files and logs lie in `folder`."""
    flower, link = folder / "flwr", free_port()
    flower.mkdir()
    (flower / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    env = flower_env(flower)
    with superlink(link, nodes, env, folder):
        command = ["flwr", "run", str(project), "here", "--stream", "--run-config", config]
        done = subprocess.run(
            command, env=env, cwd=folder, capture_output=True, text=True, timeout=200, check=False
        )
    return done.stdout[-3000:] + done.stderr[-1000:]


_PROJECT = """
[project]
name = "{name}"
version = "0.1.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedblocks"

[tool.flwr.app.components]
serverapp = "{coordinator}"
clientapp = "{companies}"

[tool.flwr.app.config]
out = ""
run-dir = ""
"""


def project_of(module: str, folder: Path, companies: str = "fedblocks.client.app:app") -> Path:
    """A Flower project whose bundle carries one file of these tests, with its `coordinator`."""
    folder.mkdir()
    name = Path(module).stem
    text = _PROJECT.format(
        name=name.replace("_", "-"), coordinator=f"{name}:coordinator", companies=companies
    )
    (folder / "pyproject.toml").write_text(text)
    shutil.copy(module, folder)
    return folder
