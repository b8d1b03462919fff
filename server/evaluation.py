"""Evaluation of the model: its family's metric after each block of the denoising chain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..blocks import Denoiser
from ..blocks.examples import Examples
from ..blocks.families import ModelSettings
from ..errors import RunError


@dataclass(frozen=True)
class Evaluator:
    """Named test sets; `heldout` exists in simulations only, where the researcher owns all data."""

    sets: dict[str, Examples]
    seed: int = 0

    @classmethod
    def of(cls, folder: Path, seed: int, model: ModelSettings) -> Evaluator:
        """The sets of a run folder, all of the model's kind. Raises: RunError where the public one is gone."""
        files = sorted(folder.glob("*.npz"))
        if not any(file.stem == "public" for file in files):
            raise RunError(f"{folder / 'public.npz'} is missing; put it back from a copy")
        return cls({f.stem: Examples.load(f).check(f.name, model.kind) for f in files}, seed)

    def quality(self, model: Denoiser) -> dict[str, list[float]]:
        """For each set the metric after each block, in order of the chain; the last value is the model's."""
        return {name: self._chain(model, data) for name, data in self.sets.items()}

    def public(self, model: Denoiser) -> float:
        """The metric on the public set."""
        return self._chain(model, self.sets["public"])[-1]

    def _chain(self, model: Denoiser, data: Examples) -> list[float]:
        # The same starting noise every time, so that rounds differ by the model only.
        generator = torch.Generator().manual_seed(self.seed)
        return model.eval().chain_quality(data.inputs, data.targets, generator)
