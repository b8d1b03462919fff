"""The same run without noise, to see what privacy costs: same public model, data, cohort and seeds."""

from __future__ import annotations

import shutil

from ... import atomic_file
from ...client.policy import load_policy
from ...server.checkpoint import Checkpoint
from ...server.run_folder import RunFolder
from ...settings import SimulationSettings, read_simulation, validated, write_simulation
from .preparation import introduce, save_policy


def prepare_reference(run: RunFolder) -> RunFolder:
    """runs/<id>/reference: the twin of a run, or the one that is there already."""
    final = run.path / "reference"
    if final.is_dir():
        return RunFolder(final)
    with atomic_file.creating_folder(final, mode=0o700) as draft:
        _fill(RunFolder(draft), run)
    return RunFolder(final)


def _fill(twin: RunFolder, run: RunFolder) -> None:
    for folder in (twin.checkpoints, twin.companies):
        folder.mkdir(mode=0o700, parents=True)
    shutil.copytree(run.evaluation, twin.evaluation)
    public = Checkpoint.load(run.checkpoints, 0)
    public.save(twin.checkpoints)
    settings, plan = read_simulation(run.path), run.plan()
    for home in run.homes():
        own = twin.companies / home.name
        own.mkdir(mode=0o700)
        shutil.copy(home / "data.npz", own / "data.npz")
        policy = load_policy(home / "policy.toml").model_copy(update={"i_accept_no_dp": True})
        save_policy(own, policy, ledger=settings.protocol == "on")
    if settings.protocol == "on":
        introduce(twin)
    without = {"epsilon": None, "noise_multiplier": None, "i_accept_no_dp": True}
    raw = settings.model_dump() | {"privacy": settings.privacy.model_dump() | without}
    own_settings = validated(SimulationSettings, raw)
    twin.write_settings(own_settings, plan.changed(noise_multiplier=0.0, run=f"{run.path.name}-reference"))
    write_simulation(twin.path, own_settings)
