"""Models that turn a last bit into a gradient's direction.

A layer's output for one example may depend, in its last bit, on how many examples go with it and on its place
among them: kernels treat blocks of rows, remainders, alignments and the tails of vectors differently. Everything
after it here is exact: the output less one of the values that it takes, in units of their distance, held to -1 or 1.
That is the example's sign, times its own direction. All weights are finite, and what is read are copies of one.

The attack is adaptive: it reads the values that the engine's own passes give on both neighbours, and puts its
threshold between the two where most examples change sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....privacy.clipping import Clipping
from .neighbours import Examples, clipped_sum, movement, without

_LARGE = 100.0  # gradients far above the clip


class Reader(nn.Module):
    """A layer under attack, on an example's values (N, d): -> (N, J)."""

    def __init__(self, width: int, read: Callable[[Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.width, self._read, self.layers = width, read, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self._read(x).flatten(1)


def _linear(width: int, out: int, rows: int = 1) -> Reader:
    layer = nn.Linear(width, out)
    return Reader(rows * width, lambda x: layer(x.unflatten(1, (rows, width))), layer)


def _swiglu(width: int, out: int) -> Reader:
    layer = nn.Linear(width, out)
    return Reader(width, lambda x: F.silu(layer(x)), layer)


def _convolution(padding: int) -> Reader:
    layer = nn.Conv2d(3, 5, 3, padding=padding)
    return Reader(3 * 36, lambda x: layer(x.unflatten(1, (3, 6, 6))), layer)


def _attention(tokens: int, width: int) -> Reader:
    def read(x: Tensor) -> Tensor:
        q = x.unflatten(1, (1, tokens, width))
        return F.scaled_dot_product_attention(q, q.flip(2), q)

    return Reader(tokens * width, read)


READERS: dict[str, Callable[[], Reader]] = {
    "linear 256 to 1": lambda: _linear(256, 1),
    "linear 64 to 16": lambda: _linear(64, 16),
    "linear 7 to 9": lambda: _linear(7, 9),
    "linear 33 to 7, 5 rows": lambda: _linear(33, 7, 5),
    "linear 96 to 288, 4 rows": lambda: _linear(96, 288, 4),
    "linear and SiLU 32 to 42": lambda: _swiglu(32, 42),
    "convolution": lambda: _convolution(1),
    "convolution, no padding": lambda: _convolution(0),
    "attention 5 by 33": lambda: _attention(5, 33),
    "layer norm 33": lambda: Reader(33, lambda x: F.layer_norm(x, (33,))),
}  # fmt: skip


class LastBit(nn.Module):
    """The losses of copies of x, each with a direction of its own; see the module's text."""

    def __init__(self, reader: Reader, x: Tensor, count: int) -> None:
        super().__init__()
        self.reader, self.x, self.directions = reader, x, torch.ones(count)
        self.head = nn.Linear(len(x), 1, bias=False)
        self.output, self.value, self.spacing = 0, 0.0, 1.0
        self.seen: dict[int, Tensor] | None = None
        self.reader.requires_grad_(False)

    def losses(self, numbers: Tensor) -> Tensor:
        x = self.x.expand(len(numbers), -1).contiguous()
        read = self.reader(x)
        if self.seen is not None:
            # Fillers repeat a number: the first row with it is the example's own.
            for number, row in zip(numbers.tolist(), read.detach(), strict=True):
                self.seen.setdefault(number, row.clone())
        steps = (read[:, self.output] - self.value) / self.spacing
        signs = F.hardtanh(4 * (steps - 0.5)) * self.directions[numbers]
        losses: Tensor = _LARGE * signs * self.head(x)[:, 0]
        return losses


@dataclass(frozen=True)
class Aim:
    """A threshold between two values of one output, and the direction of every example that changes sides."""

    output: int = 0
    low: float = 0.0
    spacing: float = 1.0
    directions: dict[int, float] = field(default_factory=dict)


def aimed(small: dict[int, Tensor], large: dict[int, Tensor]) -> Aim:
    """Where most examples change sides between what was read in two neighbours' passes: all the same way then."""
    both = sorted(small.keys() & large.keys())
    best = Aim()
    if not both:
        return best
    before, after = (torch.stack([seen[i] for i in both]) for seen in (small, large))
    for j in range(before.shape[1]):
        for low, high in pairwise(torch.cat([before[:, j], after[:, j]]).unique().tolist()):
            change = (after[:, j] > low).float() - (before[:, j] > low).float()
            changed = {i: float(c) for i, c in zip(both, change, strict=True) if c}
            if len(changed) > len(best.directions):
                best = Aim(j, low, high - low, changed)
    return best


def last_bit(
    reader: Reader, n: int, at: int, *, at_once: int, clipping: Clipping = "flat", tries: int = 3
) -> float:
    """The largest movement by one of n examples, over some inputs."""
    largest = 0.0
    for seed in range(tries):
        x = torch.randn(reader.width, generator=torch.Generator().manual_seed(seed))
        model = LastBit(reader, x, n)
        examples, numbers = Examples(model, model.losses), torch.arange(n)
        read: list[dict[int, Tensor]] = []
        for neighbour in (without(numbers, at), numbers):
            model.seen = {}
            clipped_sum(examples, neighbour, at_once=at_once, clipping=clipping)
            read.append(model.seen)
        model.seen = None
        aim = aimed(*read)
        model.output, model.value, model.spacing = aim.output, aim.low, aim.spacing
        for number, direction in aim.directions.items():
            model.directions[number] = direction
        largest = max(largest, movement(examples, numbers, at, at_once=at_once, clipping=clipping))
    return largest
