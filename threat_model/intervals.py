"""Intervals that may be printed beside a figure: each is valid for the number of cases that it comes from.

A proportion's interval is Clopper and Pearson's (1934), which holds at its level for any number of cases: 0 of 6 is
[0, 0.46], never [0, 0]. A mean's is Student's of the clusters' means, and from 20 clusters on it contains a bootstrap
over clusters too (Davison & Hinkley 1997, section 3.8), which knows of skewness. Alone, of 20 to 40, that is too
narrow: at 99.9% its lower end is wrong three to ten times as often as it says.
"""

from __future__ import annotations

import math
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator, model_validator
from scipy import stats

from ..errors import InputError

Array = npt.NDArray[np.float64]
LEVEL = 0.95
LEAST_CLUSTERS = 20  # for a bootstrap
_RESAMPLES = 2000
Method = Literal["clopper-pearson", "cluster-bootstrap", "student", "delong", "exact", "simulated"]


class Estimate(BaseModel):
    """A figure of `n` cases with its interval at `level`.

    Without an interval, `low` and `high` are infinite: null in JSON, which has no number for that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    value: float = Field(allow_inf_nan=False)
    low: float
    high: float
    n: int = Field(ge=1)
    method: Method
    level: float = Field(LEVEL, gt=0, lt=1)

    @field_validator("low", mode="before")
    @classmethod
    def _unbounded_below(cls, low: object) -> object:
        return -math.inf if low is None else low

    @field_validator("high", mode="before")
    @classmethod
    def _unbounded_above(cls, high: object) -> object:
        return math.inf if high is None else high

    @field_serializer("low", "high", when_used="json")
    def _finite(self, bound: float) -> float | None:
        return bound if math.isfinite(bound) else None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"expected low <= value <= high, got {self.low}, {self.value}, {self.high}")
        return self


def proportion(successes: int, n: int, level: float = LEVEL) -> Estimate:
    """`successes` of `n` with the exact two-sided interval at `level`.

    Raises:
        InputError: there is no case, or more successes than cases.
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError("successes", successes, f"expected 0 to {n} of n >= 1 cases")
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(stats.beta.ppf(1 - tail, successes + 1, n - successes))
    return Estimate(value=successes / n, low=low, high=high, n=n, method="clopper-pearson", level=level)


def mean(
    values: Array, clusters: npt.NDArray[np.int64] | None = None, *, seed: int = 0, level: float = LEVEL
) -> Estimate:
    """The mean of values (n,), dependent within clusters (n,); none: every value on its own.

    One cluster says nothing about its spread: the interval is then the whole line.

    Raises:
        InputError: there is no value, one is not finite, or there is not one cluster for each.
    """
    clusters = np.arange(len(values)) if clusters is None else clusters
    if len(values) == 0 or len(values) != len(clusters):
        raise InputError("values", len(values), f"expected one value for each of {len(clusters)} > 0 cases")
    if not np.isfinite(values).all():
        raise InputError("values", float("nan"), "expected finite values")
    _, index = np.unique(clusters, return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    found = float(values.mean())
    if len(sums) == 1:
        return Estimate(
            value=found, low=-math.inf, high=math.inf, n=len(values), method="student", level=level
        )
    # Of the ratio of two sums over clusters, linearised (Cochran 1977, equation 2.46).
    spread = (sums - found * counts) / counts.mean()
    half = float(stats.t.ppf((1 + level) / 2, len(sums) - 1) * spread.std(ddof=1) / math.sqrt(len(sums)))
    if len(sums) < LEAST_CLUSTERS:
        return Estimate(
            value=found, low=found - half, high=found + half, n=len(values), method="student", level=level
        )
    drawn = np.random.default_rng(seed).integers(len(sums), size=(_RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(
        value=found, low=min(float(low), found - half), high=max(float(high), found + half),
        n=len(values), method="cluster-bootstrap", level=level,
    )  # fmt: skip
