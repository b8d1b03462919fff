"""Classification with a pretrained encoder or vision transformer: one label, read from pooled tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..denoiser import Metric
from .block import wide
from .denoiser import PretrainedDenoiser
from .settings import PretrainedSettings
from .trunk import Trunk


class PretrainedClassifier(PretrainedDenoiser):
    """Labels (N,) in [0, classes). The noisy token is a copy of the first one; its output stands for that one's."""

    metric = Metric("accuracy", True, "share")

    @staticmethod
    def target_table(settings: PretrainedSettings, trunk: Trunk) -> Tensor:
        """Orthonormal: no two classes are nearer to each other than others."""
        return torch.eye(_classes(settings))

    @staticmethod
    def new_interface(settings: PretrainedSettings, block: int) -> nn.ModuleDict:
        head = nn.Linear(settings.hidden_size, _classes(settings))
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        # The last block's first token of a vision transformer is normalised by the original's own norm.
        last = block + 1 == settings.blocks
        plain = last and settings.kind_of_model == "vision" and getattr(settings, "pooling") == "first"  # noqa: B009
        norm = nn.Identity() if plain else nn.LayerNorm(settings.hidden_size)
        return nn.ModuleDict({"norm": norm, "head": head})

    def attends(self, present: Tensor) -> Tensor:
        t = present.shape[1]
        return present[:, None, None, :].expand(-1, 1, t, t)

    def copied(self, tokens: int) -> Tensor:
        return torch.zeros(1, dtype=torch.long)

    def read(self, block: int, out: Tensor, present: Tensor) -> Tensor:
        return self._head(block, self._pooled(block, out, present))

    def read_noisy(self, block: int, out: Tensor, noisy: Tensor, present: Tensor) -> Tensor:
        pooled = self._pooled(block, out, present)  # (n, D)
        first = self._finished(block, out[:, :1])  # (n, 1, D)
        moved = self._finished(block, noisy[:, :, 0]) - first  # (n, m, D)
        return self._head(block, (pooled[:, None] + moved).flatten(0, 1))

    def _pooled(self, block: int, out: Tensor, present: Tensor) -> Tensor:
        out = self._finished(block, out)
        if self.pooling == "first":
            return out[:, 0]
        weights = present[:, :, None].to(out.dtype)
        return (out * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)

    def _finished(self, block: int, out: Tensor) -> Tensor:
        """The original's final norm after the last block; before it, layers hand on what they have."""
        done = self.finished(out) if block + 1 == len(self.blocks) else out
        return wide(done)

    def _head(self, block: int, pooled: Tensor) -> Tensor:
        return self.own(block, "head", self.own(block, "norm", pooled))

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return (prediction.argmax(dim=1) == targets).float()

    @property
    def pooling(self) -> str:
        found: str = getattr(self.settings, "pooling")  # noqa: B009
        return found


def _classes(settings: PretrainedSettings) -> int:
    classes = settings.kind.target_classes
    assert classes is not None
    return classes
