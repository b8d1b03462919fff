"""The noise that blocks denoise, and its cut into intervals; no part of the privacy."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

from pydantic import Field, model_validator

from .part import Part, require


class NoiseSettings(Part):
    """Denoising noise of the blocks (not the privacy noise); names as in EDM.

    `partition`: "equi-probability" (the paper's), "uniform" (equal steps of log sigma), "uniform-linear", or
    "equi-information" (equal shares of what is to be learnt; refitted to the measured loss curve every
    `refit_every` steps of pretraining where no closed form exists). `edges`, if given, are used as they are.
    """

    P_mean: float = Field(1.0, ge=-6, le=6)
    P_std: float = Field(1.2, ge=0.1, le=5)
    sigma_min: float = Field(0.002, ge=1e-6, le=1e6)
    sigma_max: float = Field(80.0, ge=1e-6, le=1e6)
    sigma_data: float = Field(0.5, ge=1e-3, le=1e3)
    rate_min: float = Field(1e-3, ge=1e-6, lt=1, description="lowest masking rate of a masked language model")
    partition: Literal["equi-probability", "uniform", "uniform-linear", "equi-information"] = (
        "equi-probability"
    )
    edges: tuple[float, ...] | None = None
    refit_every: int = Field(100, ge=1)
    overlap: float = Field(0.05, ge=0, lt=1)
    weight: Literal["unit", "edm"] = "unit"

    @model_validator(mode="after")
    def _ordered(self) -> NoiseSettings:
        require(self.sigma_min < self.sigma_max, "sigma_min", self.sigma_min, "must be below sigma_max")
        law = NormalDist(self.P_mean, self.P_std)
        inside = law.cdf(math.log(self.sigma_max)) - law.cdf(math.log(self.sigma_min))
        require(inside > 0.5, "P_mean", self.P_mean, "sigma_min to sigma_max must hold most of the law")
        return self
