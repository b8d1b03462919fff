"""releases/ of a run: the transcript of what was released, a file for every sum that was opened.

    releases/round-0007-block-1.safetensors

holds the opened residues, packed as on the wire (P values of `bits` bits), and in its header whose they are. The
state before is not stored again: `before` is the digest of the block states that the companies were sent, and every
state follows from the public model and the sums (`threat_model.transcript`). A single company's release is never
here: nobody has it.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .. import atomic_file
from ..errors import InputError, ProtocolError, RunError
from ..privacy.secure_aggregation.packing import pack, unpack
from ..settings import Plan

_SUM, _HEADER = "sum", "release"
_ROOM = "room"
_NAME = re.compile(r"round-([0-9]{4,9})-block-([0-9]{1,4})\.safetensors")
Residues = npt.NDArray[np.uint32]


class Header(BaseModel):
    """What a file says of its sum. `status`: whether the block moved by it, or why not: the sum was larger than the
    companies' clips allow, or the coordinator left it out. `digest`: SHA-256 of the other fields and the packed sum.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    run: str
    plan: str
    round: int = Field(ge=1)
    block: int = Field(ge=0)
    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    status: Literal["applied", "oversized_sum", "discarded"]
    before: str
    length: int = Field(ge=1)
    bits: int = Field(ge=2, le=32)
    digest: str = ""

    @property
    def file(self) -> str:
        return f"round-{self.round:04d}-block-{self.block}.safetensors"

    def sealed(self, packed: npt.NDArray[np.uint8]) -> Header:
        """The header with the digest of all else and of the sum."""
        text = self.model_copy(update={"digest": ""}).model_dump_json().encode()
        h = hashlib.sha256(len(text).to_bytes(4, "big") + text)
        h.update(packed.data)
        return self.model_copy(update={"digest": h.hexdigest()})


@dataclass(frozen=True)
class OpenedSum:
    """What a coordinator learnt of one round's updates of a block: residues (P,) mod 2^bits, of all survivors."""

    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    before: bytes
    residues: Residues


@dataclass(frozen=True)
class ReleaseLog:
    """Writes and reads a run's transcript; P * bits / 8 bytes a sum."""

    folder: Path

    def begins(self, *, wanted: bool, done: int) -> bool:
        """Whether the rounds after `done` go into it. A transcript starts with the first round, or not at all; those
        of rounds that were not checkpointed are forgotten, as these will be run again."""
        if not (wanted and (done == 0 or self.folder.is_dir())):
            return False
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for path in self.folder.iterdir():
            name = _NAME.fullmatch(path.name)
            if path.name.endswith(".tmp") or (name and int(name[1]) > done):
                path.unlink()
        return True

    def write(self, plan: Plan, round_: int, block: int, opened: OpenedSum, status: str) -> None:
        """Add a sum, whole or not at all; one of a round that is repeated replaces its former self."""
        packed = pack(opened.residues, plan.bits)
        header = Header.model_validate(
            {
                "run": plan.run, "plan": plan.digest().hex(), "round": round_, "block": block,
                "cohort": opened.cohort, "survivors": opened.survivors, "status": status,
                "before": opened.before.hex(), "length": len(opened.residues), "bits": plan.bits,
            }
        ).sealed(packed)  # fmt: skip
        path = self.folder / header.file
        with atomic_file.replacing(path, mode=atomic_file.OWNER_ONLY) as draft:
            save_file({_SUM: torch.from_numpy(packed)}, draft, {_HEADER: header.model_dump_json()})

    def files(self) -> list[Path]:
        """The files by round and block. Raises: RunError for a file that is none of `write`'s."""
        found = {}
        for path in self.folder.iterdir():
            if path.name.startswith(".") and path.name.endswith(".tmp"):
                continue  # of a killed writer
            name = _NAME.fullmatch(path.name)
            place = (int(name[1]), int(name[2])) if name else (0, 0)
            if name is None or path.name != f"round-{place[0]:04d}-block-{place[1]}.safetensors":
                refuse(path, "name", path.name, "expected round-NNNN-block-B.safetensors, one file a sum")
            found[place] = path
        return [found[place] for place in sorted(found)]

    def read(self, path: Path, plan: Plan) -> tuple[Header, Residues]:
        """One sum and its header, checked. Raises: RunError naming file, field, value and rule."""
        if path.exists() and not path.is_file():
            refuse(path, "file", path.name, "is a folder, a pipe or a device")  # which may have no end
        try:
            with safe_open(path, "pt") as file:
                text, names = (file.metadata() or {}).get(_HEADER), list(file.keys())
                tensor = file.get_tensor(_SUM) if names == [_SUM] else None
        except FileNotFoundError:
            refuse(path, "file", path.name, "is missing; put it back from a copy")
        except (OSError, SafetensorError) as error:
            refuse(path, "file", path.name, f"cannot be read ({error})")
        if text is None or tensor is None:
            refuse(path, "tensors", names, f"expected one, {_SUM}, and the header {_HEADER}")
        try:
            header = Header.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            refuse(path, ".".join(map(str, first["loc"])) or _HEADER, first["input"], first["msg"].lower())
        _check(path, header, plan)
        # A sum is of whole numbers: what could hold a NaN is none.
        if tensor.dtype != torch.uint8:
            refuse(path, _SUM, _described(tensor), "expected the packed residues, of type torch.uint8")
        packed = tensor.numpy()
        try:
            residues = unpack(packed, header.length, header.bits)
        except ProtocolError as error:
            refuse(path, _SUM, tuple(packed.shape), str(error).removeprefix("bad_vector: "))
        if (digest := header.sealed(packed).digest) != header.digest:
            refuse(path, "digest", header.digest, f"expected {digest}; the file was changed")
        return header, residues


@dataclass(frozen=True)
class OpenedSums:
    """The sums of the round in flight, on disk as soon as they are opened: companies open a sum once, and would have
    to train, and pay, again for a round whose sum a crash has lost. In opened/, a file a block, until the round's
    checkpoint is written; opened/room keeps room for them from before the training on.
    """

    log: ReleaseLog
    plan: Plan

    def hold_room(self, size: int) -> None:
        """Take `size` bytes of the disk until a sum is kept. Raises: OSError where there are not so many."""
        self.log.folder.mkdir(mode=0o700, exist_ok=True)
        with (self.log.folder / _ROOM).open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.write(bytes(size))

    def keep(self, round_: int, block: int, opened: OpenedSum) -> None:
        self.log.folder.mkdir(mode=0o700, exist_ok=True)
        (self.log.folder / _ROOM).unlink(missing_ok=True)
        self.log.write(self.plan, round_, block, opened, "applied")

    def find(self, round_: int, block: int, cohort: tuple[str, ...], before: bytes) -> OpenedSum | None:
        """The sum that an earlier process has opened, for these states and companies."""
        path = self.log.folder / f"round-{round_:04d}-block-{block}.safetensors"
        if not path.is_file():
            return None
        try:
            header, residues = self.log.read(path, self.plan)
        except RunError:
            return None  # as if it had been lost
        if header.cohort != cohort or header.before != before.hex():
            return None
        return OpenedSum(cohort, header.survivors, before, residues)

    def forget(self) -> None:
        """The round is checkpointed."""
        (self.log.folder / _ROOM).unlink(missing_ok=True)
        for path in self.log.folder.glob("round-*.safetensors"):
            path.unlink()


def _described(tensor: torch.Tensor) -> str:
    bad = tensor.is_floating_point() and not bool(tensor.isfinite().all())
    return f"{tensor.dtype}" + (" with values that are not finite" if bad else "")


def _check(path: Path, header: Header, plan: Plan) -> None:
    """Whether the header is of this run, and of this file."""
    companies = set(header.cohort)
    for field, value, expected in (
        ("run", header.run, plan.run),
        ("plan", header.plan, plan.digest().hex()),
        ("bits", header.bits, plan.bits),
    ):
        if value != expected:
            refuse(path, field, value, f"expected {expected}: the file is of another run")
    if path.name != header.file:
        refuse(path, "round, block", (header.round, header.block), f"the file of these is {header.file}")
    if not 0 <= header.block < plan.model.blocks:
        refuse(path, "block", header.block, f"the model has {plan.model.blocks} blocks")
    if not 1 <= header.round <= plan.training.rounds:
        refuse(path, "round", header.round, f"the run has {plan.training.rounds} rounds")
    if len(companies) != len(header.cohort) or len(companies) < plan.secure_aggregation.minimum_cohort:
        least = plan.secure_aggregation.minimum_cohort
        refuse(path, "cohort", header.cohort, f"expected {least} or more different companies")
    if not header.survivors or not set(header.survivors) <= companies:
        refuse(path, "survivors", header.survivors, f"expected some of {', '.join(header.cohort)}")


def refuse(path: Path, field: str, value: object, rule: str) -> NoReturn:
    """A complaint in the words of the house. Raises: RunError."""
    raise RunError(f"{path}: {InputError(field, value, rule)}")
