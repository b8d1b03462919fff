"""Real releases of two neighbours, by `train_block` with its noise: are their laws as close as accounted?

The model is `last_bit`'s, as a family of its own: what a company would be asked to train if a coordinator could
write code; a plan's own families offer the same layers. If P(S | one) > e^epsilon P(S | other) + delta for an
event S, the account is false. S, a half-line along the direction in which the neighbouring sums differ, is chosen
on the first half of the releases and tested on the second, by Clopper and Pearson's bounds (1934).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.stats import beta
from torch import Tensor, nn

from ....blocks.denoiser import Denoiser, Draw, Metric
from ....blocks.examples import Examples
from ....blocks.groups import GroupedModule
from ....blocks.noise import LogNormalNoise, Partition
from ....client.policy import Policy
from ....client.training import train_block
from ....privacy.accounting import epsilon
from ....privacy.randomness import Randomness
from ....protocol.release import codec, release_event
from ....settings import DataKind, NoiseSettings, Plan
from .last_bit import READERS, Reader, aimed

RELEASED = (("linear 7 to 9", 65), ("attention 5 by 33", 65), ("linear 64 to 16", 4), ("linear 256 to 1", 11))
_LARGE = 100.0
_LEVEL = 1e-3  # of a false rejection


@dataclass(frozen=True)
class Verdict:
    """Whether equality of the laws at `epsilon` and delta is rejected, and the frequencies of the event."""

    epsilon: float
    frequency_with: float
    frequency_without: float
    rejected: bool


class _Block(GroupedModule):
    """The reader is frozen, as an interface is; the head is trained."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.interface = nn.ModuleDict({"reader": reader})
        self.head = nn.Linear(reader.width, 1, bias=False)

    def interface_modules(self) -> Sequence[nn.Module]:
        return (self.interface,)


class LastBitDenoiser(Denoiser):
    """Inputs (N, width + 2): what the reader reads, the example's direction and its number. No noise is used."""

    metric: ClassVar[Metric] = Metric("none", True, "number")

    def __init__(self, reader: Reader) -> None:
        super().__init__(Partition.equi_probability(LogNormalNoise(), 1))
        self.blocks = nn.ModuleList([_Block(reader)])
        self.output, self.value, self.spacing = 0, 0.0, 1.0
        self.seen: dict[int, Tensor] | None = None

    @classmethod
    def noise_law(cls, noise: NoiseSettings) -> LogNormalNoise:
        return LogNormalNoise()

    def embed(self, block: int, inputs: Tensor) -> Tensor:
        return inputs[:, None]

    def context(self, block: int, inputs: Tensor, before: Tensor | None = None) -> Tensor:
        return self.embed(block, inputs)

    def clean(self, targets: Tensor) -> Tensor:
        return targets

    def draw(self, block: int, targets: Tensor, *_: object) -> Draw:
        return Draw(torch.ones(len(targets)), torch.zeros(len(targets)))

    def corrupt(self, clean: Tensor, draw: Draw) -> Tensor:
        return clean

    def predict(self, block: int, z: Tensor, level: Tensor, context: Tensor) -> Tensor:
        x, direction, number = context[:, 0, :-2].contiguous(), context[:, 0, -2], context[:, 0, -1]
        own = self.blocks[0]
        assert isinstance(own, _Block)
        read = own.interface["reader"](x)
        if self.seen is not None:
            for i, row in zip(number.long().tolist(), read.detach(), strict=True):
                self.seen.setdefault(i, row.clone())
        steps = (read[:, self.output] - self.value) / self.spacing
        found: Tensor = _LARGE * F.hardtanh(4 * (steps - 0.5)) * direction * own.head(x)[:, 0]
        return found

    def estimate(self, prediction: Tensor) -> Tensor:
        return prediction

    def loss(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return prediction

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return prediction

    def prior(self, shape: torch.Size, level: float, *_: object) -> Tensor:
        return torch.zeros(shape)

    def advance(self, z: Tensor, prediction: Tensor, level: float, to: float, *_: object) -> Tensor:
        return z


class Releases:
    """A company of n examples, or of the same without the first, that releases one step at sampling rate 1."""

    def __init__(self, reader: str, n: int, noise_multiplier: float) -> None:
        torch.manual_seed(0)
        self.reader = READERS[reader]()
        self.model = LastBitDenoiser(self.reader)
        self.x = torch.randn(self.reader.width)
        self.n, self.directions = n, torch.ones(n)
        self.plan = Plan.model_validate(_plan(noise_multiplier))
        kind = DataKind(inputs=(self.reader.width + 2,), targets=(), target_classes=2)
        self.policy = Policy(company="c", epsilon_ceiling=100, delta=self.plan.delta, data=kind)
        self.start = self.model.state_dict()["blocks.0.head.weight"].clone()
        self._aim()

    def _aim(self) -> None:
        """What the reader gives in either neighbour's own passes decides threshold and directions."""
        read: list[dict[int, Tensor]] = []
        for first in (1, 0):
            self.release(first)  # the first release of all also finds how many examples fit
            self.model.seen = {}
            self.release(first)
            read.append(self.model.seen)
        self.model.seen = None
        aim = aimed(*read)
        self.model.output, self.model.value, self.model.spacing = aim.output, aim.low, aim.spacing
        for number, direction in aim.directions.items():
            self.directions[number] = direction

    def release(self, first: int) -> float:
        """One release of the examples from `first` on: the noised sum, along the direction of the gradients."""
        numbers = torch.arange(first, self.n)
        columns = self.directions[numbers, None], numbers[:, None].float()
        inputs = torch.cat([self.x.expand(len(numbers), -1), *columns], dim=1)
        data = Examples(inputs, torch.zeros(len(numbers), dtype=torch.long))
        with torch.no_grad():
            self.model.get_parameter("blocks.0.head.weight").copy_(self.start)
        residues = train_block(self.model, 0, data, self.plan, 3, Randomness.from_entropy(), self.policy)
        update = codec(self.plan, 3).decode_sum(residues)
        return float(-update @ self.x.double().numpy() / float(self.x.double().norm()))

    def verdict(self, count: int) -> Verdict:
        """`count` releases of either neighbour."""
        event = release_event(self.plan, self.reader.width)
        assert event is not None
        accounted = epsilon([event], self.plan.delta)
        samples = [np.array([self.release(first) for _ in range(count)]) for first in (0, 1)]
        return verdict(samples[0], samples[1], accounted, self.plan.delta)


def verdict(
    with_it: npt.NDArray[np.float64], without_it: npt.NDArray[np.float64], accounted: float, delta: float
) -> Verdict:
    """The test of the module's text on releases of the two neighbours, along one direction."""
    half = len(with_it) // 2
    best, event = -math.inf, (1.0, 0.0, False)
    for sign in (1.0, -1.0):
        for cut in np.concatenate([sign * with_it[:half], sign * without_it[:half]]):
            p, q = ((sign * part[:half] > cut).mean() for part in (with_it, without_it))
            for swapped, gain in ((False, p - math.exp(accounted) * q), (True, q - math.exp(accounted) * p)):
                if gain > best:
                    best, event = gain, (sign, float(cut), swapped)
    sign, cut, swapped = event
    counts = [int((sign * part[half:] > cut).sum()) for part in (with_it, without_it)]
    total = len(with_it) - half
    likely, unlikely = reversed(counts) if swapped else counts
    low = beta.ppf(_LEVEL / 2, likely, total - likely + 1) if likely else 0.0
    high = beta.ppf(1 - _LEVEL / 2, unlikely + 1, total - unlikely) if unlikely < total else 1.0
    rejected = bool(low > math.exp(accounted) * high + delta)
    return Verdict(accounted, counts[0] / total, counts[1] / total, rejected)


def _plan(noise_multiplier: float) -> dict[str, Any]:
    return {
        "run": "neighbours", "model": {"family": "vit", "layers": 1, "blocks": 1, "classes": 2}, "noise": {},
        "training": {"rounds": 1, "sampling_rate": 1.0, "expected_batch_size": 1, "noise_draws": 1},
        "delta": 1e-5, "max_grad_norm": 1.0, "noise_multiplier": noise_multiplier, "company_clip": 1e4,
        "secure_aggregation": {"bits": 32},
    }  # fmt: skip
