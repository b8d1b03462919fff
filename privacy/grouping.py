"""What rounding may add to a clipped sum, and how the clip pays for it.

A clip bounds one example's gradient, but the account needs the sums of two neighbouring data sets to lie no
further apart than that: adding an example must not change how all the others are rounded. Three measures, each
checked by a test:

1. An example's gradient has the same bits in whatever company it is computed: passes of one constant shape
   (`clipping`), on a machine that was seen to keep them (`invariance`).
2. Examples come in random order. The law of the order is uniform, so neighbours can be compared order by order
   where only two places differ: the new example takes a place, and who was there goes to the end. All other
   examples stay with the same companions, and sum with them to the same bits.
3. Sums run in float64 over groups of `size` examples, which alone are summed in the pass's own precision u. A
   group adds size * rows products a_t g_t^T; whatever their order, rounding moves it by at most

       gamma * sum_i f_i M_i,   gamma = k u / (1 - k u),  k = size * rows     (Higham 2002, section 3.1)

   with M_i = sum_t |a_t| |g_t|, the `mass` of example i. Two groups change, each before and after: 4 gamma size
   max_i f_i M_i. An example whose share of that would pass `slack` times the clip is clipped further, and
   every clip is lowered by `slack`: 0.8% in float32. So neighbouring sums lie at most one clip apart.

Groups of one size are averages of examples over all layers at once, so their shares add up as the layers' lengths
do, in squares; c different sizes of groups add up to at most sqrt(c) of the largest. What float64 may add is at most
2e-4 of the clip for a batch of a million examples, by the same bound (1e-10 was measured), and is in
`clipping.lowered`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# An example of mass up to so many clips is not clipped further than its norm asks.
_SPREAD = 7.0


def slack(precision: torch.dtype) -> float:
    """What the clip sets aside for rounding, as a share of it."""
    return 2.0**-24 if precision == torch.float64 else 2.0**-7


@dataclass(frozen=True)
class Grouping:
    """So many examples are summed in the pass's precision; rounding costs `cost` for each clip of mass."""

    size: int
    cost: float


@lru_cache(maxsize=256)
def grouping(rows: int, precision: torch.dtype) -> Grouping:
    """The largest group of examples with `rows` products each that keeps within the slack: a power of two."""
    unit = torch.finfo(precision).eps / 2

    def cost(size: int) -> float:
        terms = size * rows * unit
        return 4 * size * terms / (1 - terms) if terms < 0.5 else float("inf")

    size = 1
    while size < 1 << 16 and cost(2 * size) <= slack(precision) / _SPREAD:
        size *= 2
    # At the least a 16th of the slack, so that a factor times a mass is never above 14 clips.
    return Grouping(size, max(cost(size), slack(precision) / (2 * _SPREAD)))


def rounding_norms(masses: Iterable[Mapping[int, Tensor]], precision: torch.dtype) -> Tensor | float:
    """The norm (n,) that rounding alone asks each example to be clipped by; squared costs by size of group.

    A clip to `bound` by it leaves a share of at most slack * bound.
    """
    total: dict[int, Tensor] = {}
    for layer in masses:
        for size, squared in layer.items():
            total[size] = total[size] + squared if size in total else squared
    if not total:
        return 0.0
    largest = torch.stack(list(total.values())).amax(dim=0)
    return (len(total) * largest).sqrt() / slack(precision)
