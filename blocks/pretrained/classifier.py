"""Classification with a pretrained encoder or vision transformer: one label, read from pooled tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..denoiser import Metric
from .block import wide
from .denoiser import PretrainedDenoiser, parted
from .settings import PretrainedClassifierSettings, PretrainedSettings
from .trunk import Trunk
from .whitening import Whitening

# As many public examples, at even distances, are enough for a covariance of some hundred features.
_MEASURED, _AT_ONCE = 4096, 100


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
        return nn.ModuleDict({"norm": _before_head(settings, block), "head": head})

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

    @torch.no_grad()
    def measure(self, block: int, inputs: Tensor, before: Tensor | None = None) -> None:
        norm = self.block(block).interface["norm"]
        if not isinstance(norm, Whitening):
            return
        chosen = torch.arange(min(len(inputs), _MEASURED)) * len(inputs) // min(len(inputs), _MEASURED)
        pooled = []
        for index in chosen.split(_AT_ONCE):
            index = index.to(inputs.device)
            context = self.context(block, inputs[index], None if before is None else before[index])
            x, present = parted(context.to(self.device))
            pooled.append(self._pooled(block, self.clean_stream(block, x, present), present))
        norm.measure(torch.cat(pooled))

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return (prediction.argmax(dim=1) == targets).float()

    @property
    def pooling(self) -> str:
        return _classifier(self.settings).pooling


def _classifier(settings: PretrainedSettings) -> PretrainedClassifierSettings:
    assert isinstance(settings, PretrainedClassifierSettings)
    return settings


def _before_head(settings: PretrainedSettings, block: int) -> nn.Module:
    own = _classifier(settings)
    if own.readout == "whitened":
        return Whitening(settings.hidden_size)
    # The last block's first token of a vision transformer is normalised by the original's own norm.
    last = block + 1 == settings.blocks
    plain = last and settings.kind_of_model == "vision" and own.pooling == "first"
    return nn.Identity() if plain else nn.LayerNorm(settings.hidden_size)


def _classes(settings: PretrainedSettings) -> int:
    classes = settings.kind.target_classes
    assert classes is not None
    return classes
