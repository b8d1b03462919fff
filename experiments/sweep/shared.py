"""What several cells start from, made once: the public model, pretrained, and the companies' homes with their data.

It is a run folder without privacy, in `shared/` of the sweep, under the digest of the settings that it depends on.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ... import atomic_file
from ...blocks.examples import Examples
from ...server.checkpoint import Checkpoint
from ...server.run_folder import RunFolder
from ...settings import SimulationSettings, write_simulation
from ..baselines.one_place import public_model
from ..simulation.machine import check_writable
from ..simulation.preparation import introduce, make_plan, prepare, write_home
from .grid import Cell, baseline

# What neither the public model nor the data depend on.
_BESIDE: dict[str, Any] = {
    "name": True, "training": True, "privacy": True, "secure_aggregation": True, "influence": True, "guard": True,
    "failed_rounds": True, "releases": True, "workers": True, "audit": True, "evaluation": True,
    "protocol": True,
    "companies": {"dropout", "held_out"},
}  # fmt: skip


def digest_of(settings: SimulationSettings) -> str:
    """Of everything that public model and homes depend on, in hexadecimal digits."""
    return hashlib.sha256(settings.model_dump_json(exclude=_BESIDE).encode()).hexdigest()


def start(folder: Path, cell: Cell, on_step: Callable[[int], None] = lambda step: None) -> RunFolder:
    """What the cell starts from, or what is there already."""
    if (folder / "plan.json").is_file():
        return RunFolder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return prepare(baseline("pooled", cell).settings, folder, on_step=on_step)


def prepare_from(started: RunFolder, settings: SimulationSettings, folder: Path) -> RunFolder:
    """As `prepare`, with public model and data of a run that was prepared with the same of these settings."""
    check_writable(folder.parent)
    plan = make_plan(settings, public_model(started), folder.name)
    with atomic_file.creating_folder(folder, mode=0o700) as draft:
        run = RunFolder(draft)
        run.write_settings(settings, plan)
        write_simulation(draft, settings)
        Checkpoint.load(started.checkpoints, 0).save(run.checkpoints)
        shutil.copytree(started.evaluation, run.evaluation)
        for name in ("public_train.npz", "data.json"):
            shutil.copy2(started.path / name, draft / name)
        for home in started.homes():
            write_home(run.companies / home.name, home.name, settings, Examples.load(home / "data.npz"))
        if settings.protocol == "on":
            introduce(run)
    return RunFolder(folder.resolve())
