"""Auditing a run: adversary, view, attack, result, verdict.

What is finished is kept in `.audit/` of the run, so that an interrupted audit goes on where it stopped; a former
audit stays until the new one is whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from .. import __version__, atomic_file
from ..blocks import digest
from ..errors import InputError, RunError
from ..server.run_folder import RunFolder
from ..settings import without_protocol
from .adversaries import ADVERSARIES, adversary
from .attacks import attacks
from .audit_file import Audit, Verdict
from .gate import Gate
from .jobs import Found, Job, jobs_of, run_jobs
from .results import Result
from .subject import Subject

Images = dict[str, npt.NDArray[np.generic]]
IMAGES_FILE = "audit_images.npz"
_RESULTS = TypeAdapter(list[Result])


@dataclass(frozen=True, kw_only=True)
class AuditDesign:
    """What is asked of an audit. `adversaries` empty: all. `block` none: all. `minutes`: for all attacks together.

    Raises:
        InputError: an adversary is unknown, or a number is out of range.
    """

    minutes: float = 5.0
    adversaries: tuple[str, ...] = ()
    block: int | None = None
    seed: int = 0
    workers: int = 2
    gate: Gate = field(default_factory=Gate)

    def __post_init__(self) -> None:
        for name in self.adversaries:
            adversary(name)
        if not 0 < self.minutes < float("inf"):
            raise InputError("minutes", self.minutes, "expected more than 0")
        if self.workers < 1:
            raise InputError("workers", self.workers, "expected a whole number >= 1")

    @property
    def names(self) -> tuple[str, ...]:
        return self.adversaries or tuple(ADVERSARIES)


def audit_run(
    run: RunFolder, design: AuditDesign, on_progress: Callable[[float, str], None] = lambda share, note: None
) -> Audit:
    """Mount every attack of the design's adversaries on a simulated run; writes audit.json and its images.

    Raises:
        InputError, RunError: something that was given cannot be used; a former audit is still there then.
    """
    started = time.monotonic()
    if without_protocol(run.path):
        rule = 'ran without the protocol (protocol = "off"): there are no releases to attack'
        raise RunError(f"{run.path}: {rule}")
    subject = Subject.of(run, seed=design.seed, block=design.block)
    subject = replace(subject, workers=design.workers)
    trained = subject.plan.trained_blocks
    if design.block is not None and design.block not in trained:
        blocks = ", ".join(map(str, trained))
        raise InputError("block", design.block, f"expected one of those that the run trains: {blocks}")
    jobs, results = jobs_of(subject, [adversary(name) for name in design.names])
    kept = _Kept.of(run, subject, design)
    found = {job: read for job in jobs if (read := kept.read(job)) is not None}
    todo = [job for job in jobs if job not in found]
    for job, each in run_jobs(
        todo, subject, design.names, seconds=60 * design.minutes, on_progress=on_progress
    ):
        found[job] = kept.write(job, each)
    results += [result for own, _ in found.values() for result in own]
    images: Images = {name: values for _, own in found.values() for name, values in own.items()}
    ordered = tuple(sorted(results, key=lambda result: result.key))
    audit = Audit(
        version=__version__,
        run=subject.plan.run,
        plan=subject.plan.digest().hex(),
        round=subject.checkpoint.round,
        blocks=subject.blocks,
        adversaries=design.names,
        seed=design.seed,
        minutes=design.minutes,
        seconds=round(time.monotonic() - started, 1),
        gate=design.gate,
        results=ordered,
        verdict=Verdict.of(ordered, design.gate),
    )
    with atomic_file.replacing(run.path / IMAGES_FILE) as draft, draft.open("wb") as file:
        np.savez_compressed(file, **cast(dict[str, Any], images))
    audit.write(run)
    kept.remove()
    return audit


@dataclass(frozen=True)
class _Kept:
    """Finished jobs of an audit that is not whole yet, a file each; those of another design are removed."""

    folder: Path

    @classmethod
    def of(cls, run: RunFolder, subject: Subject, design: AuditDesign) -> _Kept:
        asked = {
            "version": __version__,
            "plan": subject.plan.digest().hex(),
            "round": subject.checkpoint.round,
            "model": digest(subject.checkpoint.model.shared, *subject.checkpoint.model.blocks).hex(),
            "minutes": design.minutes,
            "blocks": subject.blocks,  # of those attacks too that are run once on all of them
            "seed": design.seed,
            "adversaries": design.names,
        }
        name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
        parent = run.path / ".audit"
        for other in parent.glob("*") if parent.is_dir() else ():
            if other.name != name:
                shutil.rmtree(other, ignore_errors=True)
        (parent / name).mkdir(parents=True, exist_ok=True)
        return cls(parent / name)

    def read(self, job: Job) -> tuple[list[Result], Images] | None:
        """None where the job has not finished, or what it left is not whole or not of this job."""
        try:
            results = _RESULTS.validate_json((self.folder / f"{job.name}.json").read_bytes())
            if any(r.attack != job.attack or job.block not in (None, r.block) for r in results):
                return None
            with np.load(self.folder / f"{job.name}.npz", allow_pickle=False) as file:
                return results, {name: file[name] for name in file.files}
        except (OSError, ValueError, ValidationError, EOFError):
            return None

    def write(self, job: Job, found: Found) -> tuple[list[Result], Images]:
        results = [each for each in found if isinstance(each, Result)]
        images: Images = {}
        for each in found:
            if not isinstance(each, Result):
                images |= each.named()
        path = self.folder / job.name
        with atomic_file.replacing(path.with_suffix(".npz")) as draft, draft.open("wb") as file:
            np.savez_compressed(file, **cast(dict[str, Any], images))
        # The results last: what is read back is then whole.
        atomic_file.write(path.with_suffix(".json"), _RESULTS.dump_json(results))
        return results, images

    def remove(self) -> None:
        shutil.rmtree(self.folder.parent, ignore_errors=True)


def listed() -> list[dict[str, object]]:
    """Every attack: what it sees, needs and costs, as its file says."""
    keys = ("name", "title", "statement", "adversaries", "sees", "needs", "cost")
    return [{key: getattr(each, key) for key in keys} for each in attacks()]
