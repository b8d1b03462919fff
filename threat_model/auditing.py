"""Auditing a run: load what it released and under which mechanism, attack it, keep the result."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch

from .. import atomic_file
from ..blocks import BlockObjective, build_model, merge
from ..blocks.examples import Examples
from ..blocks.families import family, family_names
from ..blocks.families.vit import ViTClassifier
from ..errors import InputError, RunError
from ..server.assignment import assign
from ..server.checkpoint import Checkpoint
from ..server.run_folder import RunFolder
from ..settings import AuditSettings, Plan, read_simulation, validated
from .audit import AuditDesign, audit_block


def audit_run(
    run: RunFolder, overrides: dict[str, int], on_progress: Callable[[float, str], None]
) -> dict[str, Any]:
    """Attack one block of a run's last checkpoint with the run's own mechanism; writes audit.json and images.

    The examples attacked are the companies' own training examples: the simulator holds them, and only the
    scoring reads them.
    """
    settings, plan = read_simulation(run.path), run.plan()
    chosen = validated(AuditSettings, settings.audit.model_dump() | overrides)
    checkpoint = Checkpoint.load(run.checkpoints)
    problem = family(plan.model.family).problem
    if problem is None:
        attacked = ", ".join(name for name in family_names() if family(name).problem)
        raise InputError("model.family", plan.model.family, f"there is no attack yet but on {attacked}")
    homes = run.homes()
    if not homes:
        raise RunError(f"{run.companies}: no company's home is there; put them back from a copy")
    last = assign(max(checkpoint.round, 1), tuple(home.name for home in homes), plan)[-1]
    block = chosen.block
    if block is None:
        block = 0 if plan.model.features == "prefix" else last.block
    if block >= plan.model.blocks:
        raise InputError("audit.block", block, f"the model has {plan.model.blocks} blocks")
    model = build_model(plan.model, plan.noise)
    merge(model, checkpoint.model.shared, *checkpoint.model.blocks)
    parts = [Examples.load(home / "data.npz") for home in homes]
    # One core: its matrices are small, and a second thread only waits.
    torch.set_num_threads(1)
    result = audit_block(
        cast(ViTClassifier, model),  # as the problem says
        block,
        private=(torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts])),
        public=Examples.load(run.path / "public_train.npz").inputs,
        objective=BlockObjective(weight=plan.noise.weight),
        draws=plan.training.noise_draws,
        max_grad_norm=plan.max_grad_norm,
        noise_multiplier=own_noise(plan, len(last.companies)),
        design=AuditDesign(
            targets=chosen.targets,
            aggregates=chosen.aggregates,
            cohort=len(last.companies),
            seed=settings.seed,
        ),
        on_progress=on_progress,
    )
    document = {"run": run.path.name, "round": checkpoint.round} | result.to_json()
    with atomic_file.replacing(run.path / "audit_images.npz") as draft, draft.open("wb") as file:
        np.savez_compressed(file, **cast(dict[str, Any], result.images))
    run.write_json("audit.json", document)
    return document


def own_noise(plan: Plan, companies: int) -> float:
    """The noise multiplier of what one company sends: all of it, or its share (see `SkellamNoise`)."""
    if not plan.secure_step:
        return plan.noise_multiplier
    return plan.noise_multiplier / math.sqrt(companies - plan.dropouts - plan.colluders)
