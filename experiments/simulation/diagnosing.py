"""Block diagnostics of a run: its last model on examples that every company held out."""

from __future__ import annotations

from typing import Any

import torch

from ...blocks import build_model, merge
from ...blocks.build import metric_of
from ...blocks.diagnostics import diagnose
from ...blocks.examples import Examples
from ...server.checkpoint import Checkpoint
from ...server.run_folder import RunFolder
from .controls import CONTROLS

MOST_EXAMPLES = 512


def diagnose_run(run: RunFolder) -> dict[str, Any]:
    """Writes diagnostics.json, with the quality of the controls where they have been run."""
    plan, settings = run.plan(), run.settings()
    checkpoint = Checkpoint.load(run.checkpoints)
    model = build_model(plan.model, plan.noise).to(settings.device)
    merge(model, checkpoint.model.shared, *checkpoint.model.blocks)
    generator = torch.Generator().manual_seed(settings.seed)
    heldout = Examples.load(run.evaluation / "heldout.npz")
    chosen = heldout[torch.randperm(len(heldout), generator=generator)[:MOST_EXAMPLES]].to(model.device)
    found = diagnose(model.eval(), chosen.inputs, chosen.targets, generator)
    metric = metric_of(plan.model).name
    controls = {name: RunFolder(run.path / f"control-{name}").read_json("result.json") for name in CONTROLS}
    document = {
        "round": checkpoint.round,
        "examples": len(chosen),
        "heldout": [d.to_json() for d in found],
        "control": {name: result[metric] if result else None for name, result in controls.items()},
    }
    run.write_json("diagnostics.json", document)
    return document
