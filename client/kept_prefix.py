"""What the blocks before the trained one make of a company's examples: computed once, kept on the company's disk.

With prefix features a round runs every block up to the one that it trains. Where no earlier block is trained by the
run, the earlier ones give the same in every round, and HOME/prefix.bin keeps it: a round then costs one block.

The file is filled by the passes of training themselves. A pass that would run the earlier blocks runs them on as many
examples as ever: on those of its own that are not kept yet, and else on others, until the file is whole. So no round
makes more passes than without the file, none waits for it to be made, and the time of a pass depends on how much is
kept, never on whose it is. Features have the same bits either way: they are made by the function that the loss calls,
in passes of the one constant shape, in which a row depends on nothing but its own example (`privacy.invariance`).

The file's key is a digest of all that the features depend on: model, states of the earlier blocks, data, machine,
shape of a pass. A file with another key, or that is not whole, is replaced; a row whose digest does not fit is made
again (`prefix_file`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import __version__, atomic_file
from ..blocks import Denoiser
from ..blocks.examples import Examples
from ..blocks.state import State, digest
from ..settings import Plan
from .prefix_file import Places, PrefixFile, header_of, size_of
from .units import units

PREFIX_FILE = "prefix.bin"
_SPARE = 256 << 20  # bytes that stay free on the disk; where these are used up later, the file gives way
_told: set[tuple[Path, str]] = set()
Before = Callable[[Tensor], Tensor | None]


def nothing_kept(places: Tensor) -> None:
    """Of no example is anything kept: the earlier blocks run in every pass."""


def draws_all(plan: Plan, block: int, data: Examples) -> bool:
    """Whether the blocks before this one stay as they are, and the run draws more examples than the company has."""
    training, trained = plan.training, plan.trained_blocks
    if plan.model.features != "prefix" or plan.drawn is not None or block == 0 or block != trained[0]:
        return False
    releases = training.rounds / (1 if training.assignment == "all" else len(trained))
    shown = training.sampling_rate * units(plan, data) * training.records_per_group
    return releases * training.local_steps * shown > len(data)


def forget(home: Path) -> None:
    """Remove what is kept in a home, and what an interrupted process has left of it."""
    for path in (home / PREFIX_FILE, *home.glob(f".{PREFIX_FILE}.*.tmp")):
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class KeptPrefix:
    """The file of one home, of at most `megabytes`; none is made with 0."""

    home: Path
    megabytes: int
    log: Callable[[str], None]

    @contextmanager
    def before(self, model: Denoiser, block: int, data: Examples, plan: Plan) -> Iterator[Before]:
        """A function from places (n,) in `data` to what the earlier blocks make of these examples, (n, Tc, D) on the
        model's device; to None where that is not kept, and has to be computed.

        All calls must have the same n, with weights of the earlier blocks that stay the same.
        """
        if self.megabytes == 0:
            with suppress(OSError):
                forget(self.home)
        if self.megabytes == 0 or not draws_all(plan, block, data):
            yield nothing_kept
            return
        reader = _Reader(self, model, block, data, plan)
        try:
            yield reader.features
        finally:
            reader.close()

    def forget(self) -> None:
        """The run is over, another one begins, or the disk has no room."""
        forget(self.home)

    def say_once(self, text: str) -> None:
        if (self.home, text) not in _told:
            _told.add((self.home, text))
            self.log(text)


class _Reader:
    def __init__(self, kept: KeptPrefix, model: Denoiser, block: int, data: Examples, plan: Plan) -> None:
        self._kept, self._model, self._block, self._data, self._plan = kept, model, block, data, plan
        self._key = ""
        self._file: PrefixFile | None = None
        self._usable = True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def features(self, places: Tensor) -> Tensor | None:
        if not self._usable:
            return None
        try:
            return self._features(places)
        except OSError as error:  # as a full disk: the round goes on without
            self._give_up(f"{PREFIX_FILE} cannot be used ({error.strerror or type(error).__name__})")
            return None

    def _features(self, places: Tensor) -> Tensor:
        wanted = places.numpy()
        if not self._key:
            self._key = _key(self._model, self._block, self._data, self._plan, len(wanted))
            self._file = self._found()
        # All are read, those that fill up a pass too: the time it takes does not tell how many these are.
        if self._file is not None:
            rows, good = self._file.read(wanted)
            if self._file.whole:
                return self._given(rows.view(self._file.dtype), self._file.shape)
        else:
            good = np.zeros(len(wanted), dtype=bool)
        own = np.unique(wanted[~good])
        fresh = self._next(own, len(wanted))
        made = self._made(np.resize(fresh, len(wanted)))  # as any pass, filled up by repetition
        computed = made.cpu().reshape(len(made), -1).view(torch.uint8)
        if self._file is None:
            self._file, rows = self._created(made), computed
        elif (self._file.dtype, self._file.shape) != (made.dtype, made.shape[1:]):
            self._drop()  # as somebody has made it
            return self._features(places)
        if self._file is not None:
            self._keep(self._file, fresh, computed)
        index = np.where(good, np.arange(len(wanted)), len(wanted) + np.searchsorted(own, wanted))
        return self._given(
            torch.cat([rows, computed])[torch.from_numpy(index)].view(made.dtype), made.shape[1:]
        )

    def _given(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        return rows.view(len(rows), *shape).to(self._model.device)

    def _found(self) -> PrefixFile | None:
        most = self._kept.megabytes << 20
        return PrefixFile.found(self._kept.home / PREFIX_FILE, self._key, len(self._data), most)

    def _drop(self) -> None:
        self.close()
        self._file = None
        forget(self._kept.home)

    def _next(self, own: Places, most: int) -> Places:
        """The places that this pass computes: its own that are missing, then others, as many as it has room for."""
        missing = np.arange(len(self._data)) if self._file is None else np.flatnonzero(~self._file.held)
        return np.concatenate([own, np.setdiff1d(missing, own, assume_unique=True)])[:most]

    def _keep(self, file: PrefixFile, places: Places, computed: Tensor) -> None:
        file.write(places, computed)
        if file.whole:
            self._kept.log(f"{PREFIX_FILE} is whole: trainings of block {self._block} run that block alone")

    @torch.no_grad()
    def _made(self, places: Places) -> Tensor:
        inputs = self._data[torch.from_numpy(places)].inputs.to(self._model.device)
        return self._model.features_before(self._block, inputs).contiguous()

    def _created(self, made: Tensor) -> PrefixFile | None:
        """A file without rows yet, all of whose room on the disk is taken; none where the rules leave it no room."""
        header = header_of(self._key, len(self._data), made)
        size = size_of(len(self._data), made[0].numel() * made.element_size())
        allowed = self._kept.megabytes
        forget(self._kept.home)  # one of another key, or that is larger; its room is free again
        named = f"what the blocks before block {self._block} make of all examples takes {-(-size >> 20)} MB"
        if size > allowed << 20:
            self._give_up(f"{named}, prefix_cache_mb allows {allowed}")
            return None
        if shutil.disk_usage(self._kept.home).free < size + _SPARE:
            self._give_up(f"{named}, for which this disk has no room")
            return None
        path = self._kept.home / PREFIX_FILE
        with (
            atomic_file.replacing(path, mode=atomic_file.OWNER_ONLY, sole_writer=True) as draft,
            draft.open("r+b") as file,
        ):
            if hasattr(os, "posix_fallocate"):  # not on macOS, where a full disk is noticed later
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
            file.write(header)
        self._kept.log(f"{named}: computed once, and kept in {PREFIX_FILE} until the run is over")
        return self._found()

    def _give_up(self, why: str) -> None:
        self._usable = False
        self._kept.say_once(f"{why}: trainings of block {self._block} compute it in every pass")


def _key(model: Denoiser, block: int, data: Examples, plan: Plan, at_once: int) -> str:
    """Digest of all that decides the bits of the features."""
    device = model.device
    told = {
        "fedblocks": __version__, "torch": torch.__version__, "transformers": _installed("transformers"),
        "machine": [platform.node(), platform.machine(), torch.backends.cpu.get_cpu_capability()],
        "device": [str(device), torch.cuda.get_device_name(device) if device.type == "cuda" else ""],
        "threads": torch.get_num_threads(), "precision": torch.get_float32_matmul_precision(),
        "model": plan.model.model_dump_json(), "noise": plan.noise.model_dump_json(),
        "block": block, "earlier": digest(_earlier(model, block)).hex(),
        "data": data.digest.hex(), "at_once": at_once,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _installed(package: str) -> str:
    """The version of a package whose code computes some models' layers; empty where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _earlier(model: Denoiser, block: int) -> State:
    """The tensors that the features depend on; those that are pinned follow from the model's digest in the plan."""
    own = model.state_dict()
    return {
        name: own[name]
        for part in (None, *range(block))
        for name, group in model.groups(part).items()
        if group != "pinned"
    }
