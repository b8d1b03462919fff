"""Public pretraining block by block: only one block in memory, or several, each in a process of its own.

The folder holds shared.safetensors and a file a block, from which `pretraining.folder` starts a simulation.
Blocks may be trained on different days or machines: a folder is made from the settings alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ... import atomic_file
from ...blocks import BlockObjective, save_state, split
from ...blocks.build import metric_of
from ...blocks.single_block_training import Job, train_in_processes, train_single_block, trained_by
from ...client.data.findings import Findings
from ...errors import InputError
from ...server.run_lock import exclusive
from ...settings import RunSettings
from .preparation import fresh_model, pretrained, read_public, schedule_of

SETTINGS = "pretraining.json"
_MAKING = "making.lock"


def job_of(settings: RunSettings) -> Job:
    """What decides the trained blocks, but for the data."""
    return Job(
        model=settings.model,
        noise=settings.noise,
        schedule=schedule_of(settings),
        objective=BlockObjective(weight=settings.noise.weight),
        seed=settings.seed,
    )


def pretrain(
    settings: RunSettings,
    folder: Path,
    *,
    block: int | None = None,
    processes: int = 1,
    on_step: Callable[[int, int], None] = lambda block, step: None,
    on_data: Callable[[Findings], None] = lambda findings: None,
) -> dict[str, Any]:
    """Train one block of the folder, or all that are not trained yet; the quality once all of them are.

    `on_step` hears block and step; with several processes only of whole blocks. `on_data` hears what was found
    in the public data.
    """
    blocks, job = settings.model.blocks, job_of(settings)
    if block is not None and not 0 <= block < blocks:
        raise InputError("--block", block, f"expected 0 to {blocks - 1}")
    if settings.model.reads_to_the_end:
        rule = (
            "a block's loss reads the blocks after it, of which none is in memory; train all in a simulation"
        )
        raise InputError("model.objective", "mixed", rule)
    findings = Findings(settings.data.public.source)
    data, test = read_public(settings, findings=findings)
    on_data(findings)
    _check(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder, _MAKING):
        _make(folder, settings)
    left = [b for b in range(blocks) if trained_by(folder, b) != job.digest(b)]
    wanted = [b for b in left if block is None or b == block]
    with ExitStack() as held:
        for b in wanted:  # another process may train the other blocks meanwhile
            held.enter_context(exclusive(folder, f"training-{b}.lock"))
        if processes > 1 and len(wanted) > 1:
            train_in_processes(
                folder, wanted, data.inputs, data.targets, job=job, workers=processes,
                on_block=lambda b: on_step(b, steps) if (steps := job.schedule.steps_of(b)) else None,
            )  # fmt: skip
        else:
            for b in wanted:
                train_single_block(folder, b, data.inputs, data.targets, job=job, on_step=partial(on_step, b))
    missing = [b for b in left if b not in wanted]
    trained = [b for b in wanted if job.schedule.steps_of(b)]
    result: dict[str, Any] = {"folder": str(folder), "trained": trained, "untrained": missing}
    if not missing:
        model = pretrained(settings, folder)
        result["metric"] = metric_of(settings.model).name
        generator = torch.Generator().manual_seed(settings.seed)
        result["after_each_block"] = model.chain_quality(test.inputs, test.targets, generator)
    return result


def _check(folder: Path) -> None:
    """Refuse somebody else's folder before anything is put into it."""
    if not folder.exists() or (folder / SETTINGS).is_file():
        return
    if not folder.is_dir() or any(file.name != _MAKING for file in folder.iterdir()):
        raise InputError("--folder", str(folder), "is not an empty folder, nor one of `fedblocks pretrain`")


def _make(folder: Path, settings: RunSettings) -> None:
    """Initial weights where there are none yet; a folder of other settings is refused."""
    mine = settings.model_dump_json(include={"seed", "model", "noise", "data", "pretraining"})
    file = folder / SETTINGS
    if file.is_file():
        if json.loads(file.read_text("utf-8")) != json.loads(mine):
            raise InputError("--folder", str(folder), "holds blocks of other settings; choose another folder")
        return
    save_state(split(fresh_model(settings)), folder)
    atomic_file.sync_folder(folder)  # the settings say that the weights are there
    atomic_file.write(file, mine.encode())
