"""Training one block without the others in memory, from a folder of block states (see `state`).

Only the block's file and the shared part are read. With prefix features the blocks before it are streamed, one in
memory at a time, to compute their features of the training inputs once; a "stacked" block starts from the weights of
the one before it. The state for a resume (block, optimiser, schedule, generator, step) is checkpointed in one file,
so that an interrupted training ends in the same bits as one without interruption. A trained block's file names the
job that trained it, and the same job does not train it again.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import atomic_file
from ..errors import InputError, RunError
from .build import build_model
from .denoiser import Denoiser
from .families import ModelSettings
from .groups import Absent
from .objective import BlockObjective
from .pretrained.settings import PretrainedSettings
from .settings import NoiseSettings
from .state import check_part, merge, read_part, split
from .streamed_prefix import streamed_context
from .training import BlockTrainer, OnStep, Schedule
from .transformer import Block

_FEATURE_BATCH = 256
_TRAINED_BY = "trained_by"


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that determines the result, except the data: two trainings with equal jobs end in the same bits."""

    model: ModelSettings
    noise: NoiseSettings
    schedule: Schedule
    objective: BlockObjective = field(default_factory=BlockObjective)
    seed: int = 0

    def record(self, block: int) -> dict[str, Any]:
        """As plain values; stored with a checkpoint, so that no other job resumes it."""
        model, noise = self.model.model_dump(mode="json"), self.noise.model_dump(mode="json")
        record = asdict(self) | {"model": model, "noise": noise, "block": block}
        for name, usual in (("blocks", None), ("rate_decay", 1.0)):
            if record["schedule"][name] == usual:
                del record["schedule"][name]  # the record that it was before there was a choice
        return record

    def digest(self, block: int) -> str:
        """SHA-256 of the record, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.record(block), sort_keys=True).encode()).hexdigest()


def train_single_block(
    folder: Path,
    block: int,
    inputs: Tensor,
    targets: Tensor,
    *,
    job: Job,
    checkpoint_every: int = 100,
    on_step: OnStep = lambda step: None,
) -> None:
    """Train block-<block>.safetensors of `folder` in place, from its last checkpoint if there is one.

    inputs (N, ...), targets (N, ...) on the CPU. The noise partition is that of the settings throughout.
    Does nothing if the job has trained the block already. A block that the schedule leaves out is only measured.

    Raises:
        InputError: there is no such block.
        RunError: a file is missing, does not fit the model, or is a checkpoint of another job.
    """
    if not 0 <= block < job.model.blocks:
        raise InputError("block", block, f"expected 0 to {job.model.blocks - 1}")
    if trained_by(folder, block) == job.digest(block):
        return
    model = build_model(job.model, job.noise, only=block)
    _load(model, folder / "shared.safetensors", None)
    _load(model, _file(folder, block), block)
    before = None
    if model.features == "prefix" and block:
        if isinstance(job.model, PretrainedSettings):
            earlier = {b: read_part(_file(folder, b)) for b in range(block)}
            before = streamed_context(job.model, inputs, block, earlier)
        else:
            before = streamed_features(model, folder, block, inputs)
    if job.schedule.schedule == "stacked" and block:
        merge(model, _moved(load_file(_file(folder, block - 1)), block))
    model.measure(block, inputs, before)
    model.freeze_all_but(block).train()
    trainer = BlockTrainer(model, block, job.schedule)
    generator = torch.Generator().manual_seed(job.seed * 64 + block)
    checkpoint = folder / f"training-{block}.pt"
    if checkpoint.is_file():
        _resume(checkpoint, model, trainer, generator, job)
    steps = job.schedule.steps_of(block)
    while trainer.taken < steps:
        index = torch.randint(len(targets), (job.schedule.batch_size,), generator=generator)
        features = None if before is None else before[index]
        trainer.step(inputs[index], targets[index], job.objective, generator, features)
        if trainer.taken % checkpoint_every == 0 and trainer.taken < steps:
            saved = {
                "job": job.record(block), "block": _own(model), "trainer": trainer.state(),
                "generator": generator.get_state(),
            }  # fmt: skip
            with atomic_file.replacing(checkpoint, sole_writer=True) as draft:
                torch.save(saved, draft)
        on_step(trainer.taken)
    trainer.finish()
    metadata = {_TRAINED_BY: job.digest(block)}
    with atomic_file.replacing(_file(folder, block), sole_writer=True) as draft:
        save_file(_own(model), draft, metadata)
    checkpoint.unlink(missing_ok=True)


def trained_by(folder: Path, block: int) -> str | None:
    """Digest of the job that trained the block's file; None if it has initial weights, or does not exist."""
    if not _file(folder, block).is_file():
        return None
    with safe_open(_file(folder, block), "pt") as file:
        return (file.metadata() or {}).get(_TRAINED_BY)


def train_in_processes(
    folder: Path,
    blocks: Sequence[int],
    inputs: Tensor,
    targets: Tensor,
    *,
    job: Job,
    workers: int,
    on_block: Callable[[int], None] = lambda block: None,
) -> None:
    """`train_single_block` for several blocks at once, each in a process; the same result as one after another.

    For the same bits a single process must compute with as many threads as a worker has here.

    Raises:
        InputError: the blocks depend on each other (prefix features, or schedule "stacked").
    """
    if len(blocks) > 1:
        if job.model.features == "prefix":
            raise InputError(
                "features", "prefix", "a block's training needs those before it finished; use raw"
            )
        if job.schedule.schedule == "stacked":
            raise InputError("schedule", "stacked", "a block starts from the one before it; use together")
    threads = max(1, torch.get_num_threads() // workers)
    context = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (threads,)) as pool:
        work = partial(train_single_block, folder, inputs=inputs, targets=targets, job=job)
        running = {pool.submit(work, block): block for block in blocks}
        for done in as_completed(running):
            done.result()
            on_block(running[done])


@torch.no_grad()
def streamed_features(model: Denoiser, folder: Path, block: int, inputs: Tensor) -> Tensor:
    """The features of the inputs after the blocks before `block`, (N, Tc, D); one block in memory at a time."""
    made: Tensor | None = None
    for b in range(block):
        part = copy.deepcopy(model.blocks[block])
        assert isinstance(part, Block)
        model.blocks[b] = part
        _load(model, _file(folder, b), b)
        pieces = []
        for start in range(0, len(inputs), _FEATURE_BATCH):
            rows = slice(start, start + _FEATURE_BATCH)
            own = model.embed(b, inputs[rows])
            pieces.append(part.features(own if made is None else own + made[rows]))
        made = torch.cat(pieces)
        model.blocks[b] = Absent()
    assert made is not None
    return made


def _file(folder: Path, block: int) -> Path:
    return folder / f"block-{block}.safetensors"


def _moved(state: dict[str, Tensor], block: int) -> dict[str, Tensor]:
    """A block's tensors under the names of another block."""
    return {f"blocks.{block}.{name.split('.', 2)[2]}": tensor for name, tensor in state.items()}


def _load(model: Denoiser, path: Path, block: int | None) -> None:
    if not path.is_file():
        raise RunError(f"{path.parent}: no model state here ({path.name} is missing)")
    part = load_file(path)
    check_part(model, part, block)
    merge(model, part)


def _own(model: Denoiser) -> dict[str, Tensor]:
    """The tensors of the one block that is in memory."""
    block = next(b for b, part in enumerate(model.blocks) if not isinstance(part, Absent))
    return split(model).blocks[block]


def _resume(path: Path, model: Denoiser, trainer: BlockTrainer, generator: torch.Generator, job: Job) -> None:
    saved = torch.load(path, weights_only=True)
    if saved["job"] != job.record(trainer.block):
        raise RunError(f"{path}: is of a training with other settings; delete it to start again")
    merge(model, saved["block"])
    trainer.load(saved["trainer"])
    generator.set_state(saved["generator"])
