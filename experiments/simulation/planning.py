"""A run for real companies: a public model and a plan, from public data and a roster; never a private byte.

Of a preset only what a coordinator has is used: its private data, its invented companies and its audit are left out.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import TypeAdapter

from ... import atomic_file
from ...blocks import split
from ...client.data.findings import Findings
from ...errors import InputError
from ...privacy.secure_aggregation import Roster
from ...protocol.identity import save_roster
from ...server.checkpoint import Checkpoint
from ...server.run_folder import RunFolder
from ...settings import RunSettings, SimulationSettings, validated
from .machine import check_writable
from .preparation import OnStep, fresh_model, make_plan, public_model, read_public

_MOST = 100


def for_companies(settings: SimulationSettings, roster: Roster) -> RunSettings:
    """What decides the run for its coordinator; all companies of the roster take part.

    Raises: InputError where the settings do not fit so many.
    """
    raw = TypeAdapter(RunSettings).dump_python(settings, warnings=False)
    per_round, members = settings.companies.per_round, len(roster.members)
    if per_round is not None:
        rule = "cohorts are drawn each round in simulations alone; of real companies all take part"
        raise InputError("companies.per_round", per_round, rule)
    if members > _MOST:
        raise InputError("companies.count", members, f"at most {_MOST} real companies take part in a run")
    raw["companies"] = {"count": members}
    if settings.privacy.epsilon is None:
        raise InputError("privacy.epsilon", None, "a run with real companies needs one")
    return validated(RunSettings, raw)


def plan_run(
    settings: RunSettings, roster: Roster, folder: Path, *, on_step: OnStep = lambda step: None
) -> RunFolder:
    """Make the run folder: public pretraining, calibrated noise, the plan. It appears when it is whole.

    Raises: InputError naming field, value and rule, before anything is written.
    """
    findings = Findings(settings.data.public.source)
    train, test = read_public(settings, findings=findings)
    make_plan(settings, fresh_model(settings), folder.name)  # what it refuses needs no trained model
    check_writable(folder.parent)
    model = public_model(settings, train, on_step)
    plan = make_plan(settings, model, folder.name)
    with atomic_file.creating_folder(folder, mode=0o700) as draft:
        run = RunFolder(draft)
        run.write_settings(settings, plan)
        for made in (run.checkpoints, run.evaluation):
            made.mkdir(mode=0o700)
        Checkpoint(0, split(model)).save(run.checkpoints)
        test.save(run.evaluation / "public.npz")
        save_roster(run.roster_file, roster.members)
        found = {"public": findings.to_json()}
        atomic_file.write(
            draft / "data.json", json.dumps(found, indent=2).encode(), mode=atomic_file.OWNER_ONLY
        )
    return RunFolder(folder.resolve())
