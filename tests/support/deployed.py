"""Companies on SuperNodes of their own under a real SuperLink, as deployed: no seeds, homes named by their nodes."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedblocks.experiments.bench.transport_flower import flower_project
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


def project_of(module: str, folder: Path, companies: str = "fedblocks.client.app:app") -> Path:
    """A Flower project whose bundle carries one file of these tests, with its `coordinator`."""
    flower_project(folder, f"{Path(module).stem}:coordinator", companies)
    shutil.copy(module, folder)
    return folder
