"""The transcript of a run as an attacker over all rounds has it: every opened sum, and the state it started from.

The files hold the sums (`server.release_log`); states follow from the public model and the sums by the run's own
server optimiser, and each is held against the digest that the companies were sent. A replay has the same bits where
tensors are computed by the same kind of processor.

    for release in Transcript.of(run):
        release.mean_update                 # (P,) float64
        release.states[release.block]       # before the round
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..blocks import build_model, digest
from ..blocks.state import State, flatten, unflatten
from ..errors import RunError
from ..protocol.release import blocks_read, mean_update
from ..server.checkpoint import Checkpoint
from ..server.coordinator import trainable
from ..server.optimizer import BlockOptimizer
from ..server.release_log import Header, ReleaseLog, Residues, refuse
from ..server.run_folder import RunFolder
from ..settings import Plan

_OPENED = {
    "done": ("applied", "discarded"),
    "oversized_sum": ("oversized_sum",),
}  # by the status in the metrics


@dataclass(frozen=True)
class OpenedRelease:
    """One opened sum: the survivors' mean update (P,) float64 of a block, and the states before of the blocks that
    the companies were sent. `applied`: whether the block moved by it."""

    round: int
    block: int
    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    applied: bool
    mean_update: Tensor
    states: dict[int, State]


@dataclass(frozen=True)
class Transcript:
    """What was released until the last checkpoint, in order; `headers` are read, sums when they are asked for."""

    run: RunFolder
    plan: Plan
    checkpoint: Checkpoint
    headers: tuple[Header, ...]

    @classmethod
    def kept(cls, run: RunFolder) -> bool:
        """Whether the run has one at all."""
        return run.releases.is_dir()

    @classmethod
    def of(cls, run: RunFolder) -> Transcript:
        """A run's transcript, every file of it checked.

        Raises:
            RunError: the run has kept none, or names the file, its field, the value and the rule: another run's
                file, a missing round, a second file of one sum, a sum of another shape or type, a changed one.
        """
        if not cls.kept(run):
            rule = "no transcript: set releases = true before round one (in a simulation it is kept unasked)"
            raise RunError(f"{run.releases}: {rule}")
        plan, checkpoint = run.plan(), Checkpoint.load(run.checkpoints)
        log = ReleaseLog(run.releases)
        sizes = _sizes(plan, checkpoint)
        headers = []
        for path in log.files():
            header, _ = log.read(path, plan)
            if header.length != sizes[header.block]:
                refuse(
                    path, "length", header.length, f"block {header.block} has {sizes[header.block]} values"
                )
            if header.round <= checkpoint.round:  # later ones are of a round in flight
                headers.append(header)
        found = cls(run, plan, checkpoint, tuple(headers))
        found._check_rounds()
        return found

    def __len__(self) -> int:
        return len(self.headers)

    def __iter__(self) -> Iterator[OpenedRelease]:
        """Raises: RunError where a sum does not lead from one state to the next, nor to the last checkpoint."""
        blocks = list(Checkpoint.load(self.run.checkpoints, 0).model.blocks)
        names = _names(self.plan)
        optimizers = [
            BlockOptimizer(self.plan.training, sum(state[name].numel() for name in own))
            for state, own in zip(blocks, names, strict=True)
        ]
        log, round_, before = ReleaseLog(self.run.releases), 0, tuple(blocks)
        for header in self.headers:
            if header.round != round_:  # all blocks of a round start from the state that the round began with
                round_, before = header.round, tuple(blocks)
            b, path = header.block, log.folder / header.file
            states = {i: before[i] for i in blocks_read(self.plan, b)}
            if (own := digest(*states.values()).hex()) != header.before:
                refuse(path, "before", header.before, f"the sums of the rounds before lead to {own}")
            again, residues = log.read(path, self.plan)
            if again != header:
                refuse(
                    path, "digest", again.digest, f"expected {header.digest}; the file was changed meanwhile"
                )
            mean = self._mean(header, residues)
            if header.status == "applied":
                old = [before[b][name] for name in names[b]]
                new = unflatten(optimizers[b].step(flatten(old), mean), old)
                blocks[b] = before[b] | dict(zip(names[b], new, strict=True))
            yield OpenedRelease(
                round_, b, header.cohort, header.survivors, header.status == "applied", mean, states
            )
        if digest(*blocks) != digest(*self.checkpoint.model.blocks):
            where = self.run.checkpoints / f"round-{self.checkpoint.round:04d}"
            refuse(
                where, "blocks", digest(*self.checkpoint.model.blocks).hex(), "the sums lead to another state"
            )

    def _mean(self, header: Header, residues: Residues) -> Tensor:
        return torch.from_numpy(mean_update(self.plan, residues, len(header.cohort), len(header.survivors)))

    def _check_rounds(self) -> None:
        """Every sum that the metrics tell of is there, and no other."""
        found = {(header.round, header.block): header for header in self.headers}
        told = set()
        for row in self.run.metrics():
            if row["round"] > self.checkpoint.round:
                continue
            for task in row.get("tasks", ()):
                place = (task["round"], task["block"])
                if task["status"] not in _OPENED:
                    continue
                told.add(place)
                name = f"round-{place[0]:04d}-block-{place[1]}.safetensors"
                header = found.get(place)
                if header is None:
                    rule = f"is missing, and {self.run.metrics_file.name} says that this sum was opened"
                    refuse(self.run.releases / name, "file", name, rule)
                path = self._path(header)
                if header.status not in _OPENED[task["status"]]:
                    refuse(path, "status", header.status, f"the metrics say {task['status']}")
                if task["status"] == "done" and tuple(task["survivors"]) != header.survivors:
                    said = ", ".join(task["survivors"])
                    refuse(path, "survivors", header.survivors, f"the metrics say {said}")
        for place in found.keys() - told:
            header = found[place]
            refuse(
                self._path(header), "round, block", place, "the metrics tell of no sum that was opened then"
            )

    def _path(self, header: Header) -> Path:
        return self.run.releases / header.file


def _names(plan: Plan) -> list[list[str]]:
    model = build_model(plan.model, plan.noise)
    return [trainable(model, b, plan.training.interface) for b in range(plan.model.blocks)]


def _sizes(plan: Plan, checkpoint: Checkpoint) -> list[int]:
    """How many values an update of each block has."""
    return [
        sum(state[name].numel() for name in own)
        for state, own in zip(checkpoint.model.blocks, _names(plan), strict=True)
    ]
