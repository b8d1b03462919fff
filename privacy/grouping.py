"""The rounding error of a clipped sum, and how the clip allows for it.

A clip bounds one example's gradient, but the account needs the sums of two neighbouring data sets to lie no
further apart than that: adding an example must not change how all the others are rounded. Three measures, each
checked by a test:

1. An example's gradient has the same bits whatever other examples share its pass: all passes have one constant shape
   (`clipping`), on a machine that was tested for this (`invariance`).
2. Examples come in uniformly random order. So neighbouring data sets can be compared under pairs of orders that
   differ in two places: the new example takes one place, and the example that was there moves to the end. All other
   groups hold the same examples and sum to the same bits.
3. Groups of `size` examples are summed in the pass's own precision u, and the groups' sums are added in float64. A
   group adds size * rows products a_t g_t^T; whatever their order, rounding moves it by at most

       gamma * sum_i f_i M_i,   gamma = k u / (1 - k u),  k = size * rows     (Higham 2002, section 3.1)

   with M_i = sum_t |a_t| |g_t|, the `mass` of example i. Two groups change, each before and after: 4 gamma size
   max_i f_i M_i. An example whose share of that would pass `slack` times the clip is clipped further, and
   every clip is lowered by `slack`: 0.8% in float32. So neighbouring sums lie at most one clip apart.

Layers with one group size have the same groups, so their shares add up in squares, as the layers' norms do; c
different group sizes add up to at most sqrt(c) times the largest. Float64 adds at most 2e-4 of the clip for a batch
of a million examples, by the same bound (1e-10 was measured); `clipping.lowered` allows for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# Examples of a mass up to this many clips are clipped by their norm alone.
_SPREAD = 7.0


def slack(precision: torch.dtype) -> float:
    """The share of the clip that is kept for rounding."""
    return 2.0**-24 if precision == torch.float64 else 2.0**-7


@dataclass(frozen=True)
class Grouping:
    """`size` examples are summed in the pass's precision; rounding costs at most `cost` times their largest mass."""

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
    # At least a 14th of the slack, so that a factor times a mass is never above 14 clips.
    return Grouping(size, max(cost(size), slack(precision) / (2 * _SPREAD)))


def rounding_norms(masses: Iterable[Mapping[int, Tensor]], precision: torch.dtype) -> Tensor | float:
    """The norm (n,) by which rounding alone requires each example to be clipped.

    `masses`: of each layer, the squared costs (n,) by group size. Clipped to `bound` by this norm, an example's
    rounding is at most slack * bound.
    """
    total: dict[int, Tensor] = {}
    for layer in masses:
        for size, squared in layer.items():
            total[size] = total[size] + squared if size in total else squared
    if not total:
        return 0.0
    largest = torch.stack(list(total.values())).amax(dim=0)
    return (len(total) * largest).sqrt() / slack(precision)
