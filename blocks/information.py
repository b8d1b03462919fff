"""The uncertainty about the target at each noise level, which an equi-information partition divides equally."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .noise import NoiseLaw

LEVELS = 64
_SAMPLES = 4000
# Of more classes than this a sample is used: the curve's shape hardly changes.
_CLASSES = 1024


def level_grid(law: NoiseLaw) -> list[float]:
    """LEVELS noise levels from low to high, at equal steps of the logarithm."""
    ratio = law.high / law.low
    return [law.low * ratio ** (i / (LEVELS - 1)) for i in range(LEVELS - 1)] + [law.high]


def posterior_entropy(law: NoiseLaw, classes: int) -> tuple[list[float], list[float]]:
    """(levels, H(y | z)) in nats for z = e_y + sigma eps, y uniform, e orthonormal; by Monte Carlo.

    Dimensions that no embedding uses contain only noise and do not affect the posterior.
    """
    k = min(classes, _CLASSES)
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(k, (_SAMPLES,), generator=generator)
    eps = torch.randn(_SAMPLES, k, generator=generator)
    clean = torch.eye(k)[y]
    levels = level_grid(law)
    return levels, [_entropy((clean + sigma * eps) / sigma**2) for sigma in levels]


def _entropy(logits: Tensor) -> float:
    log_p = logits.log_softmax(dim=1)
    return float(-(log_p.exp() * log_p.nan_to_num(neginf=0.0)).sum(dim=1).mean())


class LossCurve:
    """Loss by noise level, measured while training: a running mean in each of LEVELS bins of the log level.

    curve.add(draw.level, losses)
    partition = Partition.equi_information(law, blocks, *curve.points())
    """

    def __init__(self, law: NoiseLaw, memory: float = 0.99) -> None:
        self.levels = level_grid(law)
        self._memory = memory
        self._total = torch.zeros(LEVELS, dtype=torch.float64)
        self._weight = torch.zeros(LEVELS, dtype=torch.float64)

    def add(self, level: Tensor, loss: Tensor) -> None:
        """level (N,), loss (N,) of one step."""
        low, high = math.log(self.levels[0]), math.log(self.levels[-1])
        place = (level.double().cpu().log() - low) / (high - low) * (LEVELS - 1)
        index = place.round().long().clamp(0, LEVELS - 1)
        self._total *= self._memory
        self._weight *= self._memory
        self._total.index_add_(0, index, loss.detach().double().cpu())
        self._weight.index_add_(0, index, torch.ones(len(index), dtype=torch.float64))

    def points(self) -> tuple[list[float], list[float]]:
        """(levels, loss) of the bins that have values, levels increasing; there must be at least two."""
        seen = self._weight > 0
        loss = self._total[seen] / self._weight[seen]
        return [v for v, s in zip(self.levels, seen.tolist(), strict=True) if s], loss.tolist()

    @property
    def ready(self) -> bool:
        return int((self._weight > 0).sum()) >= LEVELS // 4
