"""Checkpoints: model and optimiser state after a round, written so that a crash keeps the last complete one."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from .. import atomic_file
from ..blocks.state import ModelState, load_state, read_part, save_state
from ..errors import RunError

KEEP = 2


@dataclass
class Checkpoint:
    """State of a run after `round` rounds; round 0 is the public model."""

    round: int
    model: ModelState
    optimizers: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the folder atomically; older ones are removed except round 0 and the last KEEP."""
        final = folder / f"round-{self.round:04d}"
        with atomic_file.creating_folder(final, replace=True) as draft:
            save_state(self.model, draft)
            for block, state in self.optimizers.items():
                save_file(state, draft / f"optimizer-{block}.safetensors")
        for old in saved_rounds(folder)[1:-KEEP]:
            shutil.rmtree(folder / f"round-{old:04d}")

    @classmethod
    def load(cls, folder: Path, round_: int | None = None) -> Checkpoint:
        """The given round, or the last one.

        Raises:
            RunError: there is no such checkpoint, or names the file that it lacks.
        """
        rounds = saved_rounds(folder)
        if not rounds or (round_ is not None and round_ not in rounds):
            raise RunError(f"{folder}: no checkpoint" + ("" if round_ is None else f" of round {round_}"))
        chosen = rounds[-1] if round_ is None else round_
        path = folder / f"round-{chosen:04d}"
        try:
            model = load_state(path)
            blocks = range(len(model.blocks)) if chosen else ()  # the public model has no optimiser state
            optimizers = {b: read_part(path / f"optimizer-{b}.safetensors") for b in blocks}
        except RunError as error:
            rule = "put it back, or remove this checkpoint's folder to continue from the one before it"
            raise RunError(f"{error}; {rule}") from None
        return cls(chosen, model, optimizers)


def saved_rounds(folder: Path) -> list[int]:
    """Those that `save` named so; a copy that somebody has put beside them is none."""
    found = (re.fullmatch(r"round-([0-9]{4,9})", path.name) for path in folder.glob("round-*"))
    return sorted(int(name[1]) for name in found if name)
