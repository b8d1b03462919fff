"""How good the model is: accuracy after each block of the denoising chain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..blocks import Denoiser, sample_chain
from ..client.data import LabelledImages


@dataclass(frozen=True)
class Evaluator:
    """Named test sets; `heldout` exists in simulations only, where the researcher owns all data."""

    sets: dict[str, LabelledImages]
    seed: int = 0

    @classmethod
    def of(cls, folder: Path, seed: int) -> Evaluator:
        return cls({f.stem: LabelledImages.load(f) for f in sorted(folder.glob("*.npz"))}, seed)

    def accuracy(self, model: Denoiser) -> dict[str, list[float]]:
        """For each set the accuracy after each block, in order of the chain; the last is the model's own."""
        model.eval()
        return {name: self._after_each_block(model, data) for name, data in self.sets.items()}

    def _after_each_block(self, model: Denoiser, data: LabelledImages) -> list[float]:
        # The same starting noise every time: rounds then differ by the model alone.
        generator = torch.Generator().manual_seed(self.seed)
        labels = data.labels.to(model.device)
        chain = sample_chain(model, data.images.to(model.device), generator)
        return [float((p.argmax(dim=1) == labels).double().mean()) for p in chain]
